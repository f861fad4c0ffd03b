"""What spans and their attributes are called.

Most names are OpenTelemetry's: those of HTTP are stable, those of generative AI in development. They live in the
repository open-telemetry/semantic-conventions-genai, and may change: then here, and nowhere else. What is ours begins
with `poolgate.`, and is called as in the access line.
"""

SERVICE_NAME = "service.name"
SERVICE_VERSION = "service.version"
SERVICE_INSTANCE = "service.instance.id"

HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
ERROR_TYPE = "error.type"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_MODEL = "gen_ai.response.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
TIME_TO_FIRST_CHUNK = "gen_ai.response.time_to_first_chunk"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

REQUEST_ID = "poolgate.request_id"
TENANT = "poolgate.tenant"
POOL = "poolgate.pool"
POD = "poolgate.pod"
OUTCOME = "poolgate.outcome"
ATTEMPTS = "poolgate.attempts"
ATTEMPT = "poolgate.attempt"
DECISION = "poolgate.decision"
QUEUE_SECONDS = "poolgate.queue_seconds"

FIRST_CONTENT = "first_content"
"""The event on the span of the attempt that answered."""

VLLM = "vllm"
"""The provider: not among those that the conventions list, which they allow."""
OPERATIONS = {
    "chat": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "rerank": "rerank",
    "score": "score",
    "transcriptions": "transcription",
    "translations": "translation",
}
"""By the label of ours. What is not here asks no model to work."""
