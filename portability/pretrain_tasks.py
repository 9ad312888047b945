"""The command ``python -m portability.pretrain_tasks``: see `portability.embedded.recipes.pretrain_tasks`."""

from portability.embedded.recipes.pretrain_tasks import main

if __name__ == "__main__":
    main()
