"""Of this machine's settings of pip the way to its packages is kept, and nothing else."""

from __future__ import annotations

from ci.plain_pip import kept


def test_pip_keeps_the_way_to_its_packages_alone() -> None:
    listed = (
        ":env:.constraint='/nowhere'\n:env:.index-url='https://one'\n:env:.no-index='1'\n"
        "download.cert='/a.pem'\nglobal.cert='/b.pem'\nglobal.index-url='https://two'\n"
        "global.target='/elsewhere'\nuninstall.proxy='http://three'\n"
    )
    assert kept(listed) == {"PIP_INDEX_URL": "https://one", "PIP_CERT": "/a.pem"}
