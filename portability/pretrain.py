"""The command ``python -m portability.pretrain``: see `portability.embedded.recipes.pretrain`."""

from portability.embedded.recipes.pretrain import main

if __name__ == "__main__":
    main()
