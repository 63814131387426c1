// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package upperwire

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// Writer writes a stream. After an error every call returns it.
type Writer struct {
	out *bufio.Writer
	err error
}

// NewWriter begins a stream.
func NewWriter(w io.Writer) *Writer {
	out := &Writer{out: bufio.NewWriterSize(w, bufferSize)}
	out.bytes(Version)
	return out
}

const bufferSize = 64 << 10

// Write writes a record. The data of a File follow by Extent and EndOfFile.
func (w *Writer) Write(e Entry) error {
	w.bytes(string(e.Kind))
	switch e.Kind {
	case LeaveDir, End:
	case Failed:
		w.text(e.Text[:min(len(e.Text), maxText)])
	case Whiteout, Kept:
		w.text(e.Name)
	case Skipped:
		w.text(e.Name)
		w.text(e.Text)
	case Link:
		w.text(e.Name)
		w.number(e.ID)
	case Dir:
		w.meta(e)
		w.number(opaque(e))
	case File:
		w.meta(e)
		w.number(e.ID)
		w.number(e.Size)
	case Symlink:
		w.meta(e)
		w.text(e.Text)
	case Fifo:
		w.meta(e)
	default:
		return fmt.Errorf("a record of unknown kind %q", e.Kind)
	}
	if e.Kind == End || e.Kind == Failed {
		w.flush()
	}
	return w.err
}

// Extent writes n bytes of a file that r has, and that begin skip bytes after the end of the extent before.
func (w *Writer) Extent(skip, n uint64, r io.Reader) error {
	if n == 0 || w.err != nil {
		return w.err
	}
	w.number(skip)
	w.number(n)
	if w.err == nil {
		_, w.err = io.CopyN(w.out, r, int64(n)) //nolint:gosec // a part of a file
	}
	return w.err
}

// EndOfFile ends the data of a file.
func (w *Writer) EndOfFile() error {
	w.number(0)
	w.number(0)
	return w.err
}

func (w *Writer) meta(e Entry) {
	w.text(e.Name)
	w.number(uint64(e.Mode))
	w.number(uint64(e.UID))
	w.number(uint64(e.GID))
	if w.err == nil {
		_, w.err = w.out.Write(binary.AppendVarint(nil, e.Sec))
	}
	w.number(uint64(e.Nsec))
	w.number(uint64(len(e.Xattrs)))
	for _, x := range e.Xattrs {
		w.text(x.Name)
		w.text(x.Value)
	}
}

func (w *Writer) text(s string) {
	w.number(uint64(len(s)))
	w.bytes(s)
}

func (w *Writer) bytes(s string) {
	if w.err == nil {
		_, w.err = w.out.WriteString(s)
	}
}

func (w *Writer) number(n uint64) {
	if w.err == nil {
		_, w.err = w.out.Write(binary.AppendUvarint(w.out.AvailableBuffer(), n))
	}
}

func (w *Writer) flush() {
	if w.err == nil {
		w.err = w.out.Flush()
	}
}

func opaque(e Entry) uint64 {
	if e.Opaque {
		return 1
	}
	return 0
}
