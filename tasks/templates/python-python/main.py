"""A function for tasks: data in, result out."""


def count(data: bytes, least: int) -> str:
    """Count the words of at least so many letters; the result is text or bytes."""
    return str(sum(len(word) >= least for word in data.split()))
