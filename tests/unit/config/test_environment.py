"""Which variables are configuration, and which only look like it."""

from gateway.config.environment import one_underscore


def test_a_variable_with_one_underscore_too_few_is_told() -> None:
    environment = {
        "POOLGATE_SERVER_PORT": "8100",
        "POOLGATE_SERVER_OPS_PORT": "tcp://10.0.0.1:80",
        "POOLGATE_SERVICE_HOST": "10.0.0.1",
        "POOLGATE_API_KEY": "sk-pg_x",
        "POOLGATE_SERVER__HOST": "h",
    }
    assert list(one_underscore(environment)) == [("POOLGATE_SERVER_PORT", "POOLGATE_SERVER__PORT")]
