"""What a user's words for a host or an adapter stand for."""

import pytest

from portability.core.errors import UserError
from portability.hosts import resolve
from portability.hosts.resolve import find_folder, find_host


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch, tmp_path):
    def asked():
        pytest.fail("the hub was asked")

    monkeypatch.setattr(resolve, "look_for_hub", asked)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("words", [
    "/nothing/here", "./mine", "../mine", "~/nothing-of-mine", "a/b/c", "owner/name/", "two words", "",
    "a\nb", "owner/name@", "owner/name@main/x", "C:\\hosts\\mine",
])
def test_a_path_to_nothing_is_not_looked_for_on_the_hub(words):
    with pytest.raises(UserError, match="there is no such folder, and it is no hub id"):
        find_folder(words, "host", [])


def test_a_folder_comes_before_a_hub_id_of_the_same_name(tmp_path):
    (tmp_path / "owner/name").mkdir(parents=True)
    found, revision = find_folder("owner/name", "host", [])
    assert found.resolve() == tmp_path / "owner/name" and revision is None
    with pytest.raises(UserError, match="host 'owner/name': there is no config.json in owner/name"):
        find_host("owner/name")


@pytest.mark.parametrize("words", ["gpt2", "owner/name", "owner/name@0a1b", "my.org/a_b-1.5@refs"])
def test_a_hub_id_is_looked_for_there(words):
    with pytest.raises(pytest.fail.Exception, match="the hub was asked"):
        find_folder(words, "host", [])
