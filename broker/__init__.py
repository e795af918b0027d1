"""A Redis Streams broker for Dramatiq that loses no message, whatever fails.

    from broker import RedisStreamsBroker
    dramatiq.set_broker(RedisStreamsBroker("redis://127.0.0.1:6379/0"))

README.md in this folder lists the guarantees; ``keys.py`` lists the Redis keys.
"""

from .broker import RedisStreamsBroker
from .cancellation import Cancellation, CancelOutcome
from .dead_letters import DeadLetter, DeadLetters
from .deliveries import Delivery
from .entries import EntryDecoder, MessageCheck
from .errors import (
    Cancelled,
    DeadLetterTooLarge,
    DeliveryLimitReached,
    EnqueueUncertain,
    InvalidField,
    InvalidMessage,
    InvalidOption,
    LeaseLost,
    MessageCancelled,
    MessageExpired,
    MessageTooLarge,
    QueueFull,
    SettingsError,
    UndecodableEntry,
)
from .group_callbacks import GroupCallbacks
from .inspector import FoundMessage, Inspector, PendingEntry, Rescued, Retired, Selection, Unowned
from .key_limits import KeyAtWork, KeyLimits, MessageAtWork, Rate
from .metrics import exposition
from .middleware import StreamsMiddleware
from .running.batches import BatchedMessage, NotDoneInBatch, batch
from .running.progress import Progress, report_progress
from .settings import BrokerSettings
from .stats import ConsumerStats, QueueStats

__version__ = "0.1.0"

__all__ = [
    "BatchedMessage",
    "BrokerSettings",
    "CancelOutcome",
    "Cancellation",
    "Cancelled",
    "ConsumerStats",
    "DeadLetter",
    "DeadLetterTooLarge",
    "DeadLetters",
    "Delivery",
    "DeliveryLimitReached",
    "EnqueueUncertain",
    "EntryDecoder",
    "FoundMessage",
    "GroupCallbacks",
    "Inspector",
    "InvalidField",
    "InvalidMessage",
    "InvalidOption",
    "KeyAtWork",
    "KeyLimits",
    "LeaseLost",
    "MessageAtWork",
    "MessageCancelled",
    "MessageCheck",
    "MessageExpired",
    "MessageTooLarge",
    "NotDoneInBatch",
    "PendingEntry",
    "Progress",
    "QueueFull",
    "QueueStats",
    "Rate",
    "RedisStreamsBroker",
    "Rescued",
    "Retired",
    "Selection",
    "SettingsError",
    "StreamsMiddleware",
    "UndecodableEntry",
    "Unowned",
    "batch",
    "exposition",
    "report_progress",
]
