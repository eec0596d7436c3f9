"""Formats of strings in JSON Schema, as patterns."""

from __future__ import annotations

_HOST = r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?){0,3}\.[a-z]{2,10}"
_BYTE = r"(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_DATE = r"[1-9][0-9]{3}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
FORMATS = {
    "date": rf"^{_DATE}$",
    "time": rf"^{_TIME}$",
    "date-time": rf"^{_DATE}T{_TIME}$",
    "duration": r"^P([0-9]{1,4}D(T[0-9]{1,3}H([0-9]{1,3}M)?)?|[0-9]{1,4}W|T[0-9]{1,3}H([0-9]{1,3}M)?|T[0-9]{1,3}M)$",
    "uuid": r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
    "ipv4": rf"^{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}$",
    "ipv6": r"^[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7}$",
    "hostname": rf"^{_HOST}$",
    "email": rf"^[A-Za-z0-9_+-]{{1,30}}(\.[A-Za-z0-9_+-]{{1,30}}){{0,2}}@{_HOST}$",
    "uri": rf"^https?://{_HOST}(/[A-Za-z0-9._~-]{{0,60}}){{0,8}}(\?[A-Za-z0-9._~=&-]{{0,100}})?$",
}
"""The usual form of each, which is narrower than what the format allows."""
