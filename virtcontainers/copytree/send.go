// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copytree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

const (
	chunk   = 1 << 20 // bytes per request, as other hosts of this protocol send
	dirMode = 0o755   // parents that the guest has to make
	maxPath = 4095    // of a path in the guest
)

// check refuses names that the guest cannot have, before anything is sent.
func (to Target) check(list []Entry) error {
	for _, e := range list {
		if _, err := to.request(e); err != nil {
			return err
		}
	}
	return nil
}

// Send sends entries of a source as they are. The directories that they lie in are among those before them, or the
// guest has them.
func (to Target) Send(ctx context.Context, source *os.File, list []Entry) error {
	if err := to.check(list); err != nil {
		return err
	}
	for _, e := range list {
		if err := to.send(ctx, source, e, View{OneFS: true}); err != nil {
			return fmt.Errorf("copy %q into the guest: %w", e.Rel, err)
		}
	}
	return to.times(ctx, list)
}

// request names an entry in the guest and describes it.
func (to Target) request(e Entry) (*agent.CopyFileRequest, error) {
	r := &agent.CopyFileRequest{
		FileMode: e.Stat.Mode, DirMode: dirMode,
		Uid: int32(e.Stat.Uid), Gid: int32(e.Stat.Gid), //nolint:gosec // as the protocol has it: the same 32 bits
	}
	name := to.Guest
	if e.Rel != "" {
		name += "/" + e.Rel
	}
	switch {
	case len(name) > maxPath:
		return nil, fmt.Errorf("the path %.100q… has %d bytes in the guest, which is more than %d: %w", e.Rel, len(name),
			maxPath, errdefs.ErrInvalidArgument)
	case utf8.ValidString(name):
		r.Path = name
	case to.RawNames:
		r.RawPath = []byte(name)
	default:
		return nil, fmt.Errorf("the name %q is not UTF-8, and the guest's agent takes no other: %w", e.Rel,
			errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// mtime is the time of the last change as the protocol has it; 0 where that cannot be said.
func mtime(e Entry) int64 {
	if s := e.Stat.Mtim.Sec; s <= math.MinInt64/1_000_000_000 || s >= math.MaxInt64/1_000_000_000 {
		return 0
	}
	return e.Stat.Mtim.Nano()
}

func (to Target) send(ctx context.Context, source *os.File, e Entry, v View) error {
	switch e.kind() {
	case unix.S_IFDIR:
		req, err := to.request(e)
		if err != nil {
			return err
		}
		return to.Sink.CopyFile(ctx, req)
	case unix.S_IFLNK:
		req, err := to.request(e)
		if err != nil {
			return err
		}
		req.Data, req.FileSize, req.MtimeNs = []byte(e.Target), int64(len(e.Target)), mtime(e)
		req.Inner = true // a source is never a link itself
		return to.Sink.CopyFile(ctx, req)
	default:
		return to.sendFile(ctx, source, e, v)
	}
}

// sendFile sends a file that is still the one that was looked at.
func (to Target) sendFile(ctx context.Context, source *os.File, e Entry, v View) error {
	f, err := open(source, e, v)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, min(e.Stat.Size, chunk))
	for offset := int64(0); ; {
		piece := buf[:min(e.Stat.Size-offset, chunk)]
		if _, err := io.ReadFull(f, piece); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return fmt.Errorf("the file became shorter while it was read: %w", ErrChanged)
			}
			return err
		}
		req, err := to.request(e)
		if err != nil {
			return err
		}
		req.FileSize, req.Offset, req.Data, req.MtimeNs = e.Stat.Size, offset, piece, mtime(e)
		if err := to.Sink.CopyFile(ctx, req); err != nil {
			return err
		}
		if offset += int64(len(piece)); offset >= e.Stat.Size {
			return nil
		}
	}
}

// open opens a regular file for reading. It is compared before it is opened for that: opening a device or a
// pipe that somebody put in its place could wait, or do something.
func open(source *os.File, e Entry, v View) (*os.File, error) {
	if e.Rel == "" {
		return hostfs.Reopen(source, unix.O_RDONLY)
	}
	f, err := hostfs.Beneath(source, e.Rel, unix.O_PATH, !v.OneFS)
	if err != nil {
		return nil, changed(err)
	}
	defer f.Close()
	if err := is(f, e); err != nil {
		return nil, err
	}
	return hostfs.Reopen(f, unix.O_RDONLY)
}

// is checks that a descriptor is open on the file of an entry.
func is(f *os.File, e Entry) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Dev != e.Stat.Dev || st.Ino != e.Stat.Ino || st.Mode&unix.S_IFMT != e.kind() {
		return fmt.Errorf("%q is another file now: %w", e.Rel, ErrChanged)
	}
	return nil
}

// changed maps the errors of a look-up that concurrent renames can cause to ErrChanged.
func changed(err error) error {
	for _, e := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.EXDEV, unix.EAGAIN} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", err, ErrChanged)
		}
	}
	return err
}
