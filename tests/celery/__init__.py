"""Services with Celery on brokers that are installed for the tests."""
