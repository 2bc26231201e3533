"""Personal data in texts: what has a form of its own. Names and addresses have none and are not found."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

Kind: TypeAlias = Literal["email", "iban", "card", "ip", "phone"]

_IBAN_LENGTHS = range(15, 35)


def _luhn(text: str) -> int:
    """Length of the payment card number, 0 where the check digit is wrong. Source: ISO/IEC 7812-1, annex B."""
    digits = [int(char) for char in text if char.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return len(text) if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(digits) else 0


def _iban(text: str) -> int:
    """Length of the longest account number that `text` begins with, 0 for none. Source: ISO 13616, ISO 7064 MOD 97."""
    for end in range(len(text), _IBAN_LENGTHS.start - 1, -1):
        compact = text[:end].replace(" ", "")
        if text[end - 1] == " " or text[end : end + 1].isalnum() or len(compact) not in _IBAN_LENGTHS:
            continue
        if int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1:
            return end
    return 0


def _address(text: str) -> int:
    """Length of the IPv4 or IPv6 address, without the full stop of its sentence; 0 for none."""
    bare = text.rstrip(".:") if not text.endswith("::") else text
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return 0
    return len(bare) if any(char.isdigit() for char in bare) else 0


def _phone(text: str) -> int:
    return len(text) if 7 <= sum(char.isdigit() for char in text) <= 15 else 0


_RULES: Final[dict[Kind, tuple[re.Pattern[str], Callable[[str], int]]]] = {
    "email": (re.compile(r"(?<![\w.+-])[\w.+%-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+"), len),
    "iban": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b"), _iban),
    "card": (re.compile(r"(?<![\d.,-])\d(?:[ -]?\d){12,18}(?![\d-])"), _luhn),
    "ip": (re.compile(r"(?<![\w.:])(?=[\dA-Fa-f]*[.:])[\dA-Fa-f:.]{3,45}(?![\w:])"), _address),
    "phone": (
        re.compile(
            r"(?<![\w+./-])(?:"
            r"(?:\+|00)\d{1,3}(?:[ ./-]?\(?\d{1,5}\)?){2,6}"  # international
            r"|\(\d{2,5}\) ?\d{2,4}[ .-]?\d{3,5}"  # (030) 1234567, (555) 123-4567
            r"|\d{3}[ .-]\d{3}[ .-]\d{4}"  # 555-123-4567
            r"|0\d{1,4}[ /-]\d{3,8}(?:[ -]\d{1,5})?"  # 030 1234567, 0171/1234567
            r")(?![\w-])"
        ),
        _phone,
    ),
}


def redact(text: str, kinds: Sequence[Kind]) -> str:
    """Return the text with each find replaced by its kind: "[EMAIL]", "[CARD]".

    Cards and account numbers count only when their check digits are right. Phone numbers are found in international
    form and in the common national ones. What looks like none of these stays.
    """
    for kind, (pattern, length) in _RULES.items():
        if kind in kinds:
            text = pattern.sub(_marker(kind, length), text)
    return text


def _marker(kind: Kind, length: Callable[[str], int]) -> Callable[[re.Match[str]], str]:
    def mark(match: re.Match[str]) -> str:
        size = length(match[0])
        return f"[{kind.upper()}]{match[0][size:]}" if size else match[0]

    return mark
