"""What stands before the model that ``serve`` serves: it bounds, checks and queues requests.

transformers' server fetches pictures, decodes and tokenises in its event loop and takes whatever it
is sent. Here that loop is one of its own (``behind``), reached by one checked request at a time.
"""
