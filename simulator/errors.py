"""The one exception for requests that cannot be met."""


class RequestError(ValueError):
    """A request that is impossible as stated.

    The message is one line that says what is wrong and what would be right, with the offending
    values quoted. The command line prints it on standard error and exits with code 2.
    """
