"""HTTP itself: nothing here knows a tenant or an event.

listening, server, tls          sockets and their limits
request_context, request_ids    a request on its way
parameters                      of a query, taken strictly
responses, errors               the one shape of answers
"""
