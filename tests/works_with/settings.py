"""The settings of a Django project with one app, ``tests.works_with.shop``."""

import os

SECRET_KEY = "tests"
USE_TZ = True
INSTALLED_APPS = ["django_dramatiq", "dramatiq_crontab", "tests.works_with.shop"]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ["DATABASE"], "OPTIONS": {"timeout": 20}}
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DRAMATIQ_BROKER = {
    "BROKER": "broker.RedisStreamsBroker",
    "OPTIONS": {"url": os.environ["REDIS_URL"], "lease_ms": 2_000},
    "MIDDLEWARE": [
        "dramatiq.middleware.AgeLimit",
        "dramatiq.middleware.TimeLimit",
        "dramatiq.middleware.Callbacks",
        "dramatiq.middleware.Pipelines",
        "dramatiq.middleware.Retries",
        "django_dramatiq.middleware.DbConnectionsMiddleware",
        "django_dramatiq.middleware.AdminMiddleware",
    ],
}
DRAMATIQ_RESULT_BACKEND = {
    "BACKEND": "dramatiq.results.backends.redis.RedisBackend",
    "BACKEND_OPTIONS": {"url": os.environ["REDIS_URL"]},
    "MIDDLEWARE_OPTIONS": {"result_ttl": 60_000},
}
