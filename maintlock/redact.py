"""What may be shown: secrets in arguments masked, control characters made visible."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MASK = "***"
SECRET_WORDS = (
    "token", "password", "passwd", "passphrase", "secret", "apikey", "api-key", "api_key", "accesskey", "access-key",
    "access_key", "privatekey", "private-key", "private_key", "passcode", "credential", "auth", "bearer", "cookie",
    "signature", "pwd",
)  # fmt: skip
SECRET_PARTS = frozenset(
    "key keys pass pw pin otp jwt pat sig cred creds".split()
)  # between `-`, `_` and `.`, as in SSH_KEY_1
SECRET_ENDS = ("key", "pass")  # as in openaiKey; anywhere else in a name they mean too many other things
WITH_USER = frozenset({"-u", "--user", "--proxy-user", "-U"})  # as curl takes `user:password`
WEB = frozenset({"http", "https", "ws", "wss", "ftp", "file", "git"})  # in whose addresses a port is followed by a path
NOT_SECRET = frozenset({"author", "authors", "author-name", "author_name"})
BLANKS = {ord(letter): " " for letter in "\t\n\v\f\r"}
END = "\0"  # a quote that no word closes
MAX_ARGUMENTS = 64
MAX_ARGUMENT = 512


def is_secret_name(name: str) -> bool:
    """Tell whether an option or variable of this name usually holds a secret."""
    folded = name.lstrip("-").lower()
    if folded in NOT_SECRET:
        return False
    if folded.endswith(SECRET_ENDS) or any(word in folded for word in SECRET_WORDS):
        return True
    parts = folded.replace("-", "_").replace(".", "_").split("_")
    return any(part.rstrip("0123456789") in SECRET_PARTS for part in parts)


def without_secrets(argv: Sequence[str]) -> list[str]:
    """Return an argument list with its secrets masked, as UTF-8 can hold it, shortened to what a record can bear.

    Masked are `--token=…`, `--password …`, `user:pass@` in URLs, headers as of `curl -H`, users as of `curl -u`, JSON fields
    and `KEY=` values whose key looks secret, also inside a script handed to `sh -c`. Rather too much is masked than too little.
    """
    shown: list[str] = []
    mask_next = False
    before = ""
    for argument in argv[:MAX_ARGUMENTS]:
        is_script = before.startswith("-") and not before.startswith("--") and before.endswith("c")
        is_user = before in WITH_USER and ":" in argument
        before = argument
        if is_user:
            shown.append(f"{storable(argument.partition(':')[0], MAX_ARGUMENT)}:{MASK}")
            continue
        if mask_next and not argument.startswith("--"):
            shown.append(MASK)
            mask_next = False
            continue
        mask_next = (
            argument.startswith("-") and "=" not in argument and " " not in argument and is_secret_name(argument)
        )
        shown.append(storable(_masked(argument[: 8 * MAX_ARGUMENT], is_script=is_script), MAX_ARGUMENT))
    if len(argv) > MAX_ARGUMENTS:
        shown.append(f"… {len(argv) - MAX_ARGUMENTS} more")
    return shown


def _masked(argument: str, *, is_script: bool) -> str:
    name, _, value = argument.partition("=")
    is_plain = not is_script and name != argument and " " not in name and not _secret_header(argument)
    if is_plain and is_secret_name(name):
        return f"{name}={MASK}"  # blanks and all: the shell has taken the quotes away
    if is_plain and name.startswith("-"):
        return f"{name}={_masked(value, is_script=False)}"
    argument = _without_json_secrets(argument)
    plain = argument.replace("\\\n", " ").translate(BLANKS)
    masked = " ".join(_masked_words(plain.split(" "), is_script=is_script))
    return argument if masked == plain else masked


def _masked_words(words: Iterable[str], *, is_script: bool) -> Iterable[str]:
    mask_next = False
    quote = ""  # a masked value goes on to the end of its quotes
    for word in words:
        if quote:
            quote = _open_quote(word, quote)
            continue
        if not word:
            yield word
            continue
        if mask_next and not word.startswith("--"):
            yield MASK
            mask_next = False
            quote = _open_quote(word)
            continue
        header = _secret_header(word)
        if header:
            yield f"{header}:{MASK}"
            quote = _open_quote(word) or ("" if is_script and header != word[:-1] else END)
            continue
        masked = _without_value(word)
        if masked != word:
            yield _without_url_passwords(masked)
            quote = _open_quote(word)
            continue
        bare = word.strip("'\"")
        mask_next = (bare.startswith("-") and is_secret_name(bare)) or bare.lower() == "bearer"
        yield _without_url_passwords(word)


def _secret_header(word: str) -> str:
    """Return the name in `Authorization:` or `X-Api-Key:x`, or `""`."""
    header, colon, value = word.partition(":")
    name = header.strip("'\"")
    is_header = not value or "-" in name or name.lower() == "authorization"  # `token:refresh` is a script of npm's
    is_other = "=" in header or value.startswith("//")
    return header if colon and is_header and not is_other and is_secret_name(name) else ""


def _without_json_secrets(text: str) -> str:
    """Return text in which each `"password": "x"` of a JSON object, in quotes that a shell may have to see, is without the x."""
    parts = text.split('"')
    for index in range(1, len(parts) - 1):
        after = parts[index + 1].lstrip("\\ ")
        if after.startswith(":") and is_secret_name(parts[index].rstrip("\\")):
            if after.rstrip("\\ ") == ":" and index + 2 < len(parts):
                escape = "\\" if parts[index + 2].endswith("\\") else ""
                parts[index + 2] = MASK + escape
            else:
                value, comma, rest = after[1:].partition(",")
                brace = "}" if value.rstrip().endswith("}") else ""
                parts[index + 1] = f":{MASK}{brace}{comma}{rest}"
    return '"'.join(parts)


def _open_quote(text: str, quote: str = "") -> str:
    """Return what is open after `text`, as the character that closes it; a backslash keeps the next blank in the word."""
    quote, is_escaped, before = quote.removesuffix("\\"), False, ""
    for letter in text:
        if is_escaped:
            is_escaped = False
        elif letter == "\\" and quote != "'":
            is_escaped = True
        elif letter == quote:
            quote = ""
        elif not quote and (letter in "'\"`" or (letter == "(" and before == "$")):
            quote = ")" if letter == "(" else letter
        before = letter
    return quote or ("\\" if is_escaped else "")


def _without_value(word: str) -> str:
    """Return `--token=x`, `--env=TOKEN=x` or `https://host/?token=x` without the x, other words as they are."""
    parts = word.split("=")
    for index, name in enumerate(parts[:-1]):
        if is_secret_name(name.strip("'\"")):
            return "=".join([*parts[: index + 1], MASK])
    return word


def _without_url_passwords(word: str) -> str:
    """Return each `scheme://user:pass@host` without the password, and `scheme://token@host` without the token."""
    parts = word.split("://")
    shown = [_without_credentials(part, is_web=_is_web(parts[index])) for index, part in enumerate(parts[1:])]
    return "://".join([parts[0], *shown])


def _is_web(text: str) -> bool:
    """Tell whether text ends in the scheme of an address on the web."""
    scheme = text[len(text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+.-")) :]
    return scheme.lower().rpartition("+")[2] in WEB


def _without_credentials(address: str, *, is_web: bool) -> str:
    credentials, at, host = address.rpartition("@")
    user, colon, password = credentials.partition(":")
    has_port = is_web and password.lstrip("0123456789")[:1] in {"/", "?", "#"}
    if not at or (not colon and "/" in credentials) or (colon and ("/" in user or has_port)):
        return address  # the `@` stands in a path
    return f"{user}:{MASK}@{host}" if colon else f"{MASK}@{host}"


def storable(text: str, limit: int = 200) -> str:
    """Return free text as UTF-8 can hold it, shortened to what a record can bear."""
    return text[:limit].encode("utf-8", "backslashreplace").decode()


def printable(text: object, limit: int = 400) -> str:
    """Return text that cannot steer a terminal or forge a line: control characters are shown as escapes."""
    shown = "".join([c if c.isprintable() else _escaped(c) for c in str(text)[:limit]])
    return shown + ("…" if len(str(text)) > limit else "")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
