"""The glue between the queue and the domain: what travels, what runs, what is told about it, how it is put together."""
