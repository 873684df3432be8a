import pytest

from paramserver.client.connection.address import check_address
from paramserver.wire.errors import RequestError


@pytest.mark.parametrize(
    "address", ["localhost:1", "10.0.0.1:50051", "a-b.c_d:65535", "[::1]:80", "unix:/tmp/x y.sock"]
)
def test_addresses_that_are_taken_as_they_are(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":80", "host:0", "host:65536", "host:x", "unix:", "http://host:80", "a b:80"]
)
def test_malformed_addresses_are_refused_by_name(address: str) -> None:
    with pytest.raises(RequestError, match="address") as caught:
        check_address(address)
    assert repr(address) in str(caught.value)
