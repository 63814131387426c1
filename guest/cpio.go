// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package guest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
)

// The cpio "newc" format, as Documentation/driver-api/early-userspace/buffer-format.rst of the
// kernel describes it: a 110-byte ASCII header, the name with its NUL padded to 4 bytes, the data
// padded to 4 bytes.
const (
	cpioMagic     = "070701"
	cpioHeaderLen = 110
	cpioTrailer   = "TRAILER!!!"
	cpioAlign     = 4
	cpioTailAlign = 512

	maxCPIOName  = 4096
	maxCPIOFile  = 512 << 20
	maxCPIOFiles = 65536

	modeDir     = 0o040000
	modeRegular = 0o100000
	modeSymlink = 0o120000
	modeType    = 0o170000
)

// Entry is a file of the initramfs.
type Entry struct {
	Path   string // without a leading slash
	Mode   uint32 // type and permission bits as in stat(2)
	Data   []byte // a regular file's content
	Target string // a symbolic link's target
	Origin string // where it comes from, for the manifest
}

func (e Entry) isDir() bool     { return e.Mode&modeType == modeDir }
func (e Entry) isRegular() bool { return e.Mode&modeType == modeRegular }
func (e Entry) isSymlink() bool { return e.Mode&modeType == modeSymlink }

func (e Entry) body() []byte {
	if e.isSymlink() {
		return []byte(e.Target)
	}
	return e.Data
}

func (e Entry) check() error {
	switch {
	case e.Path == "" || e.Path != path.Clean(e.Path) || path.IsAbs(e.Path) || e.Path == ".." ||
		strings.HasPrefix(e.Path, "../"):
		return fmt.Errorf("initramfs entry %q: not a clean relative path", e.Path)
	case len(e.Path) >= maxCPIOName || strings.ContainsRune(e.Path, 0):
		return fmt.Errorf("initramfs entry %.40q…: name is too long or holds a NUL", e.Path)
	case e.isDir() && len(e.Data) > 0, e.isSymlink() != (e.Target != ""), e.isSymlink() && len(e.Data) > 0:
		return fmt.Errorf("initramfs entry %s: content does not fit mode %o", e.Path, e.Mode)
	case !e.isDir() && !e.isRegular() && !e.isSymlink():
		return fmt.Errorf("initramfs entry %s: mode %o is no file, directory or link", e.Path, e.Mode)
	case len(e.Data) > maxCPIOFile:
		return fmt.Errorf("initramfs entry %s: %d bytes, more than %d", e.Path, len(e.Data), maxCPIOFile)
	}
	return nil
}

// WriteCPIO writes entries as a newc archive. The bytes depend on nothing but the entries: they
// are sorted by path, owned by root and dated to the epoch, and inode numbers count up.
// Missing parent directories are an error, because the kernel would drop the file silently.
func WriteCPIO(w io.Writer, entries []Entry) error {
	sorted := slices.Clone(entries)
	slices.SortFunc(sorted, func(a, b Entry) int { return strings.Compare(a.Path, b.Path) })
	dirs := map[string]bool{".": true}
	bw := bufio.NewWriterSize(w, 1<<20)
	cw := &countingWriter{w: bw}
	for i, e := range sorted {
		if err := e.check(); err != nil {
			return err
		}
		if i > 0 && sorted[i-1].Path == e.Path {
			return fmt.Errorf("initramfs entry %s: given twice", e.Path)
		}
		if !dirs[path.Dir(e.Path)] {
			return fmt.Errorf("initramfs entry %s: no directory entry for its parent", e.Path)
		}
		dirs[e.Path] = e.isDir()
		if err := writeCPIOEntry(cw, e, i+1); err != nil {
			return err
		}
	}
	if err := writeCPIOEntry(cw, Entry{Path: cpioTrailer}, 0); err != nil {
		return err
	}
	if err := cw.pad(cpioTailAlign); err != nil {
		return err
	}
	return bw.Flush()
}

func writeCPIOEntry(cw *countingWriter, e Entry, ino int) error {
	body := e.body()
	links := 1
	if e.isDir() {
		links = 2
	}
	fields := [13]int{ino, int(e.Mode), 0, 0, links, 0, len(body), 0, 0, 0, 0, len(e.Path) + 1, 0}
	var h strings.Builder
	h.WriteString(cpioMagic)
	for _, f := range fields {
		fmt.Fprintf(&h, "%08x", f)
	}
	h.WriteString(e.Path)
	h.WriteByte(0)
	if _, err := io.WriteString(cw, h.String()); err != nil {
		return err
	}
	if err := cw.pad(cpioAlign); err != nil {
		return err
	}
	if _, err := cw.Write(body); err != nil {
		return err
	}
	return cw.pad(cpioAlign)
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *countingWriter) pad(align int64) error {
	if rest := c.n % align; rest != 0 {
		_, err := c.Write(make([]byte, align-rest))
		return err
	}
	return nil
}

// ReadCPIO reads a newc archive as WriteCPIO writes it. Anything that this package never writes
// (devices, hard links, owners, dates, a second archive behind the first) is an error, so that what
// is shown is all that the kernel would unpack.
func ReadCPIO(r io.Reader) ([]Entry, error) {
	cr := &cpioReader{r: bufio.NewReaderSize(r, 1<<20)}
	var entries []Entry
	for {
		e, err := cr.next()
		if err != nil {
			return nil, fmt.Errorf("read initramfs at byte %d: %w", cr.n, err)
		}
		if e.Path == cpioTrailer {
			return entries, cr.tail()
		}
		if err := e.check(); err != nil {
			return nil, err
		}
		if entries = append(entries, e); len(entries) > maxCPIOFiles {
			return nil, fmt.Errorf("read initramfs: more than %d files", maxCPIOFiles)
		}
	}
}

type cpioReader struct {
	r io.Reader
	n int64
}

func (c *cpioReader) take(n int64) ([]byte, error) {
	// Grows with what is really there, not with what a header claims.
	b, err := io.ReadAll(io.LimitReader(c.r, n))
	c.n += int64(len(b))
	if err == nil && int64(len(b)) != n {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

func (c *cpioReader) align() error {
	rest := c.n % cpioAlign
	if rest == 0 {
		return nil
	}
	pad, err := c.take(cpioAlign - rest)
	if err == nil && strings.Trim(string(pad), "\x00") != "" {
		err = errors.New("padding is not zero")
	}
	return err
}

func (c *cpioReader) next() (Entry, error) {
	h, err := c.take(cpioHeaderLen)
	if err != nil {
		return Entry{}, err
	}
	if string(h[:6]) != cpioMagic {
		return Entry{}, fmt.Errorf("magic %q is not %q", h[:6], cpioMagic)
	}
	var f [13]uint32
	for i := range f {
		v, err := strconv.ParseUint(string(h[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			return Entry{}, fmt.Errorf("header field %d: %w", i, err)
		}
		f[i] = uint32(v)
	}
	mode, size, nameLen := f[1], int64(f[6]), int64(f[11])
	if f[2] != 0 || f[3] != 0 || f[5] != 0 || f[9] != 0 || f[10] != 0 || f[12] != 0 {
		return Entry{}, errors.New("owner, time, device or checksum is not zero")
	}
	if nameLen < 2 || nameLen > maxCPIOName || size > maxCPIOFile {
		return Entry{}, fmt.Errorf("name of %d bytes or content of %d is out of bounds", nameLen, size)
	}
	name, err := c.take(nameLen)
	if err != nil {
		return Entry{}, err
	}
	if name[nameLen-1] != 0 {
		return Entry{}, errors.New("name does not end in NUL")
	}
	e := Entry{Path: string(name[:nameLen-1]), Mode: mode}
	if err := c.align(); err != nil {
		return Entry{}, err
	}
	body, err := c.take(size)
	if err != nil {
		return Entry{}, err
	}
	if e.isSymlink() {
		e.Target = string(body)
	} else if len(body) > 0 {
		e.Data = body
	}
	return e, c.align()
}

// tail checks that only zeros follow the trailer.
func (c *cpioReader) tail() error {
	rest, err := io.ReadAll(io.LimitReader(c.r, cpioTailAlign+1))
	if err != nil {
		return fmt.Errorf("read initramfs after its end: %w", err)
	}
	if len(rest) > cpioTailAlign || strings.Trim(string(rest), "\x00") != "" {
		return errors.New("read initramfs: there is data behind its end")
	}
	return nil
}
