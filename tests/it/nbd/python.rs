//! libnbd through its Python binding: what it finds, and what it gets when it is told to be rude.

use std::process::Command;

use blockferry_tests::process::run_with_input;

use super::{MIB, Served, memory};

/// Runs a script in which `h` is connected; the system's Python, because others lack the module.
#[track_caller]
fn script(served: &Served, setup: &str, script: &str) {
    let mut python = Command::new("/usr/bin/python3");
    python.arg("-");
    let text = format!(
        "import nbd, errno\n\
         def fails(number, call, *args):\n\
         \x20   try:\n\
         \x20       call(*args)\n\
         \x20   except nbd.Error as error:\n\
         \x20       assert error.errnum == number, (call, args, error)\n\
         \x20   else:\n\
         \x20       raise AssertionError((call, args, 'went well'))\n\
         h = nbd.NBD()\n{setup}\nh.connect_uri('{}')\n{script}\nh.shutdown()\n",
        served.uri()
    );
    run_with_input(&mut python, text.as_bytes()).unwrap();
}

#[test]
fn block_status_is_what_is_there() {
    let served = Served::read_only(memory(4 * MIB));
    script(
        &served,
        "h.add_meta_context('base:allocation')",
        "M = 1 << 20\n\
         seen = []\n\
         h.block_status(4 * M, 0, lambda context, offset, entries, error: seen.append((context, offset, list(entries))))\n\
         assert seen == [('base:allocation', 0, [2 * M, 0, M, 3, M, 0])], seen\n\
         seen = []\n\
         h.block_status(M, 2 * M + 512, lambda c, o, entries, e: seen.append(list(entries)), flags=nbd.CMD_FLAG_REQ_ONE)\n\
         assert seen == [[M - 512, 3]], seen\n\
         parts = []\n\
         h.pread_structured(2 * M, M + M // 2, lambda buf, offset, status, error: parts.append((offset, len(buf), status)))\n\
         assert sorted(parts) == [(M + M // 2, M // 2, nbd.READ_DATA), (2 * M, M, nbd.READ_HOLE), (3 * M, M // 2, nbd.READ_DATA)], parts\n\
         assert h.pread(10, 2 * M) == bytes(10)\n\
         h.cache(M, 0)",
    );
}

#[test]
fn rude_requests_get_the_numbers_of_the_protocol() {
    let served = Served::writable(memory(4 * MIB));
    script(
        &served,
        "h.set_strict_mode(0)",
        "M = 1 << 20\n\
         fails(errno.EINVAL, h.pread, 1, 4 * M)\n\
         fails(errno.EINVAL, h.pread, 512, (1 << 63) - 512)\n\
         fails(errno.ENOSPC, h.pwrite, bytes(20), 4 * M - 10)\n\
         fails(errno.ENOSPC, h.zero, 512, 4 * M)\n\
         fails(errno.EINVAL, h.trim, 512, 4 * M)\n\
         fails(errno.EINVAL, h.cache, 512, 4 * M)\n\
         fails(errno.EINVAL, h.pread, 512, 0, 1 << 14)\n\
         h.pwrite(b'', 0)\n\
         h.pwrite(b'abc', 7, nbd.CMD_FLAG_FUA)\n\
         assert h.pread(3, 7) == b'abc'\n\
         h.zero(M, 0, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)\n\
         assert h.pread(3, 7) == bytes(3)\n\
         h.flush()",
    );
    let read_only = Served::read_only(memory(MIB));
    script(
        &read_only,
        "h.set_strict_mode(0)",
        "fails(errno.EPERM, h.pwrite, bytes(512), 0)\n\
         fails(errno.EPERM, h.trim, 512, 0)\n\
         fails(errno.EPERM, h.zero, 512, 0)\n\
         h.flush()\n\
         assert len(h.pread(512, 0)) == 512",
    );
}

#[test]
fn simple_replies_do_for_old_clients() {
    let served = Served::writable(memory(4 * MIB));
    script(
        &served,
        "h.set_request_structured_replies(False)",
        "M = 1 << 20\n\
         assert not h.can_df()\n\
         assert h.pread(M, 2 * M) == bytes(M)\n\
         h.pwrite(b'x' * 5000, M)\n\
         assert h.pread(5000, M) == b'x' * 5000\n\
         h.set_strict_mode(0)\n\
         fails(errno.EINVAL, h.pread, 1, 4 * M)",
    );
}

#[test]
fn a_hundred_requests_in_flight_come_back_right() {
    let served = Served::writable(memory(16 * MIB));
    script(
        &served,
        "",
        "bufs = []\n\
         whole = b''.join(h.pread(1 << 20, i << 20) for i in range(16))\n\
         for i in range(200):\n\
         \x20   offset = (i * 7919 * 512) % (15 << 20)\n\
         \x20   buf = nbd.Buffer(65536)\n\
         \x20   bufs.append((h.aio_pread(buf, offset), buf, offset))\n\
         for cookie, buf, offset in bufs:\n\
         \x20   while h.aio_in_flight() > 0:\n\
         \x20       h.poll(-1)\n\
         \x20   assert bytes(buf.to_bytearray()) == whole[offset:offset + 65536], offset",
    );
}
