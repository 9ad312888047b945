"""The command ``python -m portability.merge``: see `portability.methods.merge_lora`."""

from portability.methods.merge_lora import main

if __name__ == "__main__":
    main()
