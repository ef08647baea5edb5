"""The same promises on an S3-compatible server (needs `pip install s3fs "moto[server]"`; skipped without)."""

from collections.abc import Iterator
from uuid import uuid4

import pytest
from treeopo_storage import (
    MissingDependencyError,
    NotAStoreError,
    StoreAccessError,
    StoreLockedError,
    StoreMeta,
    TreeStore,
    TreeWriter,
    create_store,
    open_store,
    open_writer,
)
from treeopo_storage.conformance import TreeStoreConformance, random_tree
from treeopo_storage.verify import verify_store


def test_a_url_without_its_driver_says_what_to_install() -> None:
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependencyError, match="s3fs"):
            open_store("s3://bucket/trees.zarr")
    else:
        pytest.skip("s3fs is installed")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="trees")
        yield "s3://trees"
    server.stop()


@pytest.mark.slow
class TestS3(TreeStoreConformance):
    @pytest.fixture(autouse=True)
    def url(self, bucket: str) -> None:
        self.path = f"{bucket}/{uuid4().hex}/trees.zarr"

    def create(self, meta: StoreMeta) -> None:
        create_store(self.path, meta)

    def open_writer(self) -> TreeWriter:
        return open_writer(self.path)

    def open_store(self) -> TreeStore:
        return open_store(self.path)

    def test_a_second_writer_is_refused(self) -> None:
        """Object stores have no locks: the writer that was overtaken stops instead."""
        self.create(self.meta)
        with self.open_writer() as first, self.open_writer() as second:
            second.append([random_tree("p", 1)])
            with pytest.raises(StoreLockedError, match="another writer has committed"):
                first.append([random_tree("q", 2)])

    def test_verification_reads_the_bucket(self) -> None:
        self.filled([[random_tree(f"p{seed}", seed) for seed in range(4)]])
        assert verify_store(self.path).problem_count == 4

    def test_nothing_there_is_not_a_store(self) -> None:
        with pytest.raises(NotAStoreError):
            open_store(self.path)

    def test_a_bucket_that_does_not_exist_is_one_clear_line(self) -> None:
        for use in (open_store, lambda path: create_store(path, self.meta)):
            with pytest.raises((NotAStoreError, StoreAccessError)) as caught:
                use(f"s3://absent-{uuid4().hex}/trees.zarr")
            assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_unreachable_server_is_one_clear_line(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreAccessError, match=r"cannot read the store: .*127\.0\.0\.1:9"):
        open_store(f"{bucket}/trees.zarr")
