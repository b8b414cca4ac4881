"""Tables and lines of verbs that have many."""
