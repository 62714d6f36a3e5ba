"""Who asked to be forgotten: whom a request covers, and following the requests on the log."""
