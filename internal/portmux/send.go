// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// portWrite is the most that one write to a virtio-serial port takes; Linux,
	// drivers/char/virtio_console.c, port_fops_write.
	portWrite = 32 << 10
	// maxSplice is the most that one frame takes out of a pipe: the channel is taken for less than
	// two milliseconds at the speeds of an emulated port.
	maxSplice = 256 << 10
	// minSplice is from where a splice costs less than the copy of the bytes into the write that
	// takes the header.
	minSplice = 16 << 10
)

// splicer is a channel that can take what a pipe holds without it being copied. Splice moves
// exactly n bytes, which the pipe has.
type splicer interface {
	Splice(pipe, n int) error
}

// takeTurn waits for the turn to write.
func (c *Conn) takeTurn() error {
	over, taken := c.wdead.wait(), false
	select {
	case c.link.turn <- struct{}{}:
		taken = true
	case <-c.closed:
	case <-c.peerGone:
	case <-over:
	case <-c.link.done:
	}
	err := c.writeError(over)
	if err != nil && taken {
		c.link.turn.Unlock()
	}
	return err
}

// sendData sends one frame. Queued frames go along, and its header shares a write with the start of
// its body: on a virtio-serial port each write is an exit of the guest.
func (c *Conn) sendData(p []byte) error {
	if err := c.takeTurn(); err != nil {
		return err
	}
	defer c.link.turn.Unlock()
	return c.write(p)
}

// begin puts the header of a frame behind the frames that wait; the caller has the turn. Our end of the stream is
// among these or comes after the frame: bytes behind it would be an error of the protocol.
func (c *Conn) begin(length int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.finSent {
		return net.ErrClosed
	}
	l := c.link
	l.out = header{kind: typeData, stream: c.id, length: uint32(length)}.append(l.queued(l.out[:0])) //nolint:gosec // descriptors
	return nil
}

// write sends one frame; the caller has the turn.
func (c *Conn) write(p []byte) error {
	if err := c.begin(len(p)); err != nil {
		return err
	}
	l := c.link
	head := max(0, min(len(p), portWrite-len(l.out)))
	l.out = append(l.out, p[:head]...)
	_, err := l.channel.Write(l.out)
	if err == nil && head < len(p) {
		_, err = l.channel.Write(p[head:])
	}
	if err != nil {
		_ = l.fail(err) // a frame may have been cut off
		return ErrLost
	}
	return nil
}

// SpliceFrom sends what comes out of a pipe until its last writer has gone. Large amounts are not
// copied. It returns errors.ErrUnsupported, and has done nothing, when the channel cannot do that,
// and f's own error when its read deadline has passed.
func (c *Conn) SpliceFrom(f *os.File) (int64, error) {
	if _, ok := c.link.channel.(splicer); !ok {
		return 0, errors.ErrUnsupported
	}
	pipe, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var total int64
	for {
		// Wait for the pipe without the turn, and read it with the turn: another process may have
		// read it meanwhile.
		if err := pipe.Read(readable); err != nil {
			return total, err
		}
		n, err := c.sendPipe(pipe)
		total += int64(n)
		switch {
		case errors.Is(err, io.EOF):
			return total, nil
		case err != nil:
			return total, err
		}
	}
}

// readable tells whether a read would return at once.
func readable(fd uintptr) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	for {
		n, err := unix.Poll(p, 0)
		if !errors.Is(err, unix.EINTR) {
			return n != 0 || err != nil
		}
	}
}

// sendPipe sends one frame from a pipe, and returns what was in it; nothing if the pipe turned out to be
// empty.
func (c *Conn) sendPipe(pipe syscall.RawConn) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	room, err := c.reserve(maxSplice)
	if err != nil {
		return 0, err
	}
	sent := 0
	defer func() { c.giveBack(room - sent) }()
	if err := c.takeTurn(); err != nil {
		return 0, err
	}
	defer c.link.turn.Unlock()
	var small []byte
	cerr := pipe.Control(func(fd uintptr) { sent, small, err = c.link.take(int(fd), room) })
	switch err = errors.Join(cerr, err); {
	case errors.Is(err, unix.EAGAIN):
		return 0, nil
	case err != nil:
		return 0, err
	case small != nil:
		return sent, c.write(small)
	}
	return sent, c.writePipe(sent)
}

// take takes at most room bytes out of a pipe without waiting: a few are read, more are moved to
// the private pipe, which takes pages and not bytes. Both settle how many there are. The bytes that
// a frame announces must be there, or the whole channel would wait for a process that reads its own output back.
func (l *link) take(fd, room int) (n int, small []byte, err error) {
	waiting, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err == nil && l.private == nil {
		l.private, err = newPrivatePipe()
	}
	if err != nil {
		return 0, nil, err
	}
	if waiting < minSplice || room < minSplice {
		small = l.private.small[:min(minSplice, room)]
		n, err = retry(func() (int, error) { return unix.Read(fd, small) })
		small = small[:n]
	} else {
		n, err = retry(func() (int, error) {
			n, err := unix.Splice(fd, nil, l.private.w, nil, room, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
			return int(n), err
		})
	}
	if err == nil && n == 0 {
		err = io.EOF
	}
	return n, small, err
}

// writePipe sends a frame of the n bytes in the private pipe; the caller has the turn.
func (c *Conn) writePipe(n int) error {
	l := c.link
	if err := c.begin(n); err != nil {
		l.private.close() // with what is in it
		l.private = nil
		return err
	}
	_, err := l.channel.Write(l.out)
	if err == nil {
		s, _ := l.channel.(splicer) // asked before
		err = s.Splice(l.private.r, n)
	}
	if err != nil {
		_ = l.fail(err) // the frame was cut off
		return ErrLost
	}
	return nil
}

func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// privatePipe holds what a frame is announced for.
type privatePipe struct {
	r, w  int
	small [minSplice]byte
}

func newPrivatePipe() (*privatePipe, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("make a pipe to splice through: %w", err)
	}
	growPipe(p[0], maxSplice)
	return &privatePipe{r: p[0], w: p[1]}, nil
}

// growPipe does its best: a smaller pipe makes smaller frames.
func growPipe(fd, size int) { _, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, size) }

func (p *privatePipe) close() {
	if p != nil {
		_ = unix.Close(p.r)
		_ = unix.Close(p.w)
	}
}
