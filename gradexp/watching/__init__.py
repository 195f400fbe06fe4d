"""A user's module in a user's loop: observed like any net of ours."""

from gradexp.watching.watching import Watch, watch

__all__ = ["Watch", "watch"]
