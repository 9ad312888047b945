"""The command ``python -m portability.publish``: see `portability.tracking.upload`."""

from portability.tracking.upload import main

if __name__ == "__main__":
    main()
