"""Why something cannot be done on columns: the rows then say what it means."""

from __future__ import annotations


class NotInColumnsError(Exception):
    """Columns cannot be trusted to give what the rows would give, a result or an error.

    Raised before anything has changed, and never shown to a user: whoever asked goes on with rows.
    The text is a reason, in a few words.
    """
