// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package inside

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pipes are the FIFOs between a command's streams and this program. While the command runs, this program holds both
// ends of each, so that no order of opening matters; drain lets go of the writing ends, and then each output ends when
// the shim has closed its own.
type pipes struct {
	readers, writers []*os.File
	copied           []chan error
	in               *os.File // writing end of the input; nil without one
	unfed            *os.File // reading end of it, until feed
}

func (p *pipes) open(path string) (r, w *os.File, err error) {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return nil, nil, fmt.Errorf("make FIFO %s: %w", path, err)
	}
	if r, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, fmt.Errorf("open a FIFO to read: %w", err)
	}
	if w, err = os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open a FIFO to write: %w", err), r.Close())
	}
	return r, w, nil
}

// output copies the bytes that are written to a new FIFO.
func (p *pipes) output(path string, to io.Writer) (string, error) {
	r, w, err := p.open(path)
	if err != nil {
		return "", err
	}
	done := make(chan error, 1)
	p.readers, p.writers, p.copied = append(p.readers, r), append(p.writers, w), append(p.copied, done)
	go func() {
		_, err := io.Copy(to, r)
		done <- err
	}()
	return path, nil
}

// input makes a FIFO for feed.
func (p *pipes) input(path string) (string, error) {
	r, w, err := p.open(path)
	if err != nil {
		return "", err
	}
	p.in, p.unfed = w, r
	return path, nil
}

// feed copies from the user until either side ends, once the shim reads. The copy of a terminal's keys cannot be
// interrupted: it ends with the program.
func (p *pipes) feed(from io.Reader, ended func()) {
	_ = p.unfed.Close() // from now on the shim's end alone counts
	p.unfed = nil
	in := p.in
	go func() {
		_, err := io.Copy(in, from)
		_ = in.Close() // the command may have gone before
		if err == nil {
			ended()
		}
	}()
}

// drain waits for the rest of the output of a command that has ended.
func (p *pipes) drain() error {
	for _, w := range p.writers {
		_ = w.Close() // nothing was written by us
	}
	var errs []error
	for i, done := range p.copied {
		_ = p.readers[i].SetReadDeadline(time.Now().Add(endTimeout)) // a FIFO has deadlines
		errs = append(errs, <-done)
	}
	p.copied = nil
	return errors.Join(errs...)
}

// close ends all copies of output, and the input.
func (p *pipes) close() {
	files := append(append([]*os.File{p.in, p.unfed}, p.readers...), p.writers...)
	for _, f := range files {
		if f != nil {
			_ = f.Close() // may be closed already
		}
	}
	for _, done := range p.copied {
		<-done //nolint:errcheck // the reader was closed
	}
}
