// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upperwire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"

	"github.com/containerd/errdefs"
)

// Limits bound a stream.
type Limits struct {
	Entries uint64 // records with a name
	Bytes   uint64 // of data, targets and attributes
	Size    uint64 // of all files together with their holes
}

// Reader reads a stream of a sender that is not trusted.
type Reader struct {
	in    *bufio.Reader
	left  Limits
	most  Limits
	first bool   // the upper directory has been read
	depth int    // directories that are open
	size  uint64 // of the file whose data are being read
	buf   []byte
}

// NewReader reads the beginning of a stream.
func NewReader(r io.Reader, most Limits) (*Reader, error) {
	in := &Reader{in: bufio.NewReaderSize(r, bufferSize), left: most, most: most, buf: make([]byte, bufferSize)}
	got := make([]byte, len(Version))
	if _, err := io.ReadFull(in.in, got); err != nil {
		return nil, broken(err)
	}
	if string(got) != Version {
		return nil, bad("it begins with %q and not with %q", got, Version)
	}
	return in, nil
}

func bad(format string, a ...any) error {
	return fmt.Errorf("the guest's stream of files is refused: %s: %w", fmt.Sprintf(format, a...),
		errdefs.ErrInvalidArgument)
}

// broken is the error of a stream that ends early.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("the guest's stream of files broke off: %w", err)
}

// Next returns the next record, up to End. A File's data must be read by Data before. Failed is an error.
func (r *Reader) Next() (e Entry, err error) {
	k, err := r.in.ReadByte()
	if err != nil {
		return e, broken(err)
	}
	e.Kind = Kind(k)
	if err := r.order(e.Kind); err != nil {
		return e, err
	}
	switch e.Kind {
	case LeaveDir:
		r.depth--
		return e, nil
	case End:
		return e, nil
	case Failed:
		text, err := r.text(maxText, "a reason")
		if err != nil {
			return e, err
		}
		return e, fmt.Errorf("the guest could not send the container's files: %q: %w", text, errdefs.ErrAborted)
	}
	if err := r.named(&e); err != nil {
		return e, err
	}
	return e, r.fields(&e)
}

// order refuses records that cannot follow those before.
func (r *Reader) order(k Kind) error {
	switch {
	case k == Failed:
	case !r.first && k != Dir:
		return bad("the first record is %q and not the upper directory", k)
	case r.first && r.depth == 0 && k != End:
		return bad("record %q follows the end of the upper directory", k)
	case k == End && r.depth > 0:
		return bad("it ends within a directory")
	}
	return nil
}

// named reads the name of an entry.
func (r *Reader) named(e *Entry) (err error) {
	if e.Name, err = r.text(maxName, "a name"); err != nil {
		return err
	}
	if r.left.Entries == 0 {
		return bad("it has more than %d entries", r.most.Entries)
	}
	r.left.Entries--
	if !r.first {
		r.first = true
		if e.Name != "" {
			return bad("the upper directory has the name %q", e.Name)
		}
		return nil
	}
	if e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
		return bad("%q is not the name of an entry", e.Name)
	}
	return nil
}

// fields reads the fields after the name.
func (r *Reader) fields(e *Entry) (err error) {
	switch e.Kind {
	case Dir, File, Symlink, Fifo:
		if e.Meta, err = r.meta(e.Name); err != nil {
			return err
		}
	}
	switch e.Kind {
	case Dir:
		r.depth++
		n, err := r.number(1, "a mark of opacity")
		e.Opaque = n == 1
		return err
	case File:
		return r.file(e)
	case Link:
		if e.ID, err = r.number(math.MaxUint64, ""); err == nil && e.ID == 0 {
			err = bad("link %q: it names no file", e.Name)
		}
		return err
	case Symlink:
		e.Text, err = r.text(maxTarget, "a link's target")
		if err == nil && (e.Text == "" || strings.ContainsRune(e.Text, 0)) {
			err = bad("symbolic link %q: %q is not a target", e.Name, e.Text)
		}
		if err == nil {
			err = r.spend(uint64(len(e.Text)))
		}
		return err
	case Skipped:
		e.Text, err = r.text(maxText, "a reason")
		return err
	case Fifo, Whiteout, Kept:
		return nil
	}
	return bad("%q: records of kind %q do not exist: only directories, files, links, fifos and whiteouts are taken",
		e.Name, e.Kind)
}

func (r *Reader) file(e *Entry) (err error) {
	if e.ID, err = r.number(math.MaxUint64, ""); err != nil {
		return err
	}
	if e.Size, err = r.number(math.MaxUint64, ""); err != nil {
		return err
	}
	if e.Size > r.left.Size {
		return bad("file %q: its %d bytes with those before are more than %d", e.Name, e.Size, r.most.Size)
	}
	r.left.Size -= e.Size
	r.size = e.Size
	return nil
}

// meta reads owner, mode, time and attributes.
func (r *Reader) meta(name string) (m Meta, err error) {
	for _, f := range []struct {
		to   *uint32
		most uint64
		what string
	}{
		{&m.Mode, maxMode, "mode"},
		{&m.UID, math.MaxUint32 - 1, "user id"},
		{&m.GID, math.MaxUint32 - 1, "group id"},
	} {
		n, err := r.number(f.most, f.what)
		if err != nil {
			return m, fmt.Errorf("%q: %w", name, err)
		}
		*f.to = uint32(n) //nolint:gosec // at most its bound
	}
	if m.Sec, err = binary.ReadVarint(r.in); err != nil {
		return m, r.badNumber(err)
	}
	n, err := r.number(999_999_999, "part of a second")
	if err != nil {
		return m, err
	}
	m.Nsec = uint32(n) //nolint:gosec // at most its bound
	m.Xattrs, err = r.xattrs(name)
	return m, err
}

func (r *Reader) xattrs(name string) ([]Xattr, error) {
	n, err := r.number(maxXattrs, "number of attributes")
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	var out []Xattr
	room := maxXattrsB
	for range n {
		var x Xattr
		if x.Name, err = r.text(maxName, "an attribute's name"); err != nil {
			return nil, err
		}
		if strings.ContainsRune(x.Name, 0) || !Attribute(x.Name) {
			return nil, bad("%q: the extended attribute %q is not one that is taken", name, x.Name)
		}
		if x.Value, err = r.text(min(maxValue, room), "an attribute's value"); err != nil {
			return nil, err
		}
		room -= len(x.Value)
		if err := r.spend(uint64(len(x.Name) + len(x.Value))); err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

// Data hands out the data of the file that Next returned last, with their place in the file, in pieces of at most 64
// KiB that are overwritten by the next one.
func (r *Reader) Data(to func(data []byte, at uint64) error) error {
	at := uint64(0)
	for {
		skip, err := r.number(math.MaxUint64, "")
		if err != nil {
			return err
		}
		n, err := r.number(math.MaxUint64, "")
		switch {
		case err != nil:
			return err
		case n == 0:
			return nil
		case skip > r.size-at || n > r.size-at-skip:
			return bad("a file of %d bytes has data behind its end", r.size)
		}
		if err := r.spend(n); err != nil {
			return err
		}
		for at += skip; n > 0; {
			piece := r.buf[:min(n, uint64(len(r.buf)))]
			if _, err := io.ReadFull(r.in, piece); err != nil {
				return broken(err)
			}
			if err := to(piece, at); err != nil {
				return err
			}
			at += uint64(len(piece))
			n -= uint64(len(piece))
		}
	}
}

// spend counts bytes.
func (r *Reader) spend(n uint64) error {
	if n > r.left.Bytes {
		return bad("it has more than %d bytes", r.most.Bytes)
	}
	r.left.Bytes -= n
	return nil
}

func (r *Reader) number(most uint64, what string) (uint64, error) {
	n, err := binary.ReadUvarint(r.in)
	if err != nil {
		return 0, r.badNumber(err)
	}
	if n > most {
		return 0, bad("%d is no %s: it is above %d", n, what, most)
	}
	return n, nil
}

// badNumber tells an end in a number from a number that does not end.
func (r *Reader) badNumber(err error) error {
	if _, perr := r.in.Peek(1); perr == nil {
		return bad("%v", err)
	}
	return broken(err)
}

func (r *Reader) text(most int, what string) (string, error) {
	n, err := r.number(uint64(most), "length of "+what) //nolint:gosec // a constant
	if err != nil {
		return "", err
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.in, b); err != nil {
		return "", broken(err)
	}
	return string(b), nil
}
