"""Only what is known to be about a client's input is told as the client's error."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from omnizip_jax.inference.chat_template import check_question
from omnizip_jax.serve.errors import RequestError, as_request_error, invalid_input


def test_errors_of_this_package_about_its_arguments_are_the_clients():
    refused = pytest.raises(RequestError, match="the question must be a text")
    with refused as error, invalid_input("text"):
        check_question("")
    assert (error.value.status, error.value.param) == (400, "text")


@pytest.mark.parametrize(
    "bug",
    [
        lambda: np.zeros((3, 4)) @ np.zeros((3, 4)),
        lambda: jnp.concatenate([]),
        lambda: json.loads("{"),
        lambda: int("x"),
        lambda: list(zip([1], [], strict=True)),
    ],
)
def test_other_value_errors_are_bugs(bug, caplog):
    with pytest.raises(ValueError) as error, invalid_input():
        bug()
    assert not isinstance(error.value, RequestError)
    refusal = as_request_error(error.value)
    assert refusal.status == 500 and str(error.value) not in str(refusal)
    assert "Traceback" in caplog.text and str(error.value) in caplog.text
