"""The one exception that a user's mistake or a bad file raises."""


class BestiaryError(Exception):
    """What a user did, or what a file holds, is wrong; the message says what, the value, and what would be right.

    The command line prints it as one line and exits with status 1. Anything else is a bug and keeps its traceback.
    """
