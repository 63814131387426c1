// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package portmux

import "io"

// Yamux frame header: version, type, flags(2), stream(4), length(4); yamux specification,
// section "Framing".
const (
	headerSize = 12
	typeData   = 0
)

// portWrite is the most that one write to a virtio-serial port takes; Linux,
// drivers/char/virtio_console.c, port_fops_write.
const portWrite = 32 << 10

// channel joins the header of a data frame with the start of its body, which yamux writes one
// after the other, into one write: on a virtio-serial port each write is an exit of the guest. The
// rest of a long body follows uncopied. Only yamux's single send loop calls Write.
type channel struct {
	io.ReadWriteCloser
	buf []byte // a header that waits for its body, or empty
}

func (c *channel) Write(p []byte) (int, error) {
	if len(c.buf) == 0 {
		if !isDataHeader(p) {
			return c.ReadWriteCloser.Write(p)
		}
		c.buf = append(c.buf, p...)
		return len(p), nil
	}
	head := min(len(p), portWrite-len(c.buf))
	c.buf = append(c.buf, p[:head]...)
	_, err := c.ReadWriteCloser.Write(c.buf)
	c.buf = c.buf[:0]
	if err == nil && head < len(p) {
		_, err = c.ReadWriteCloser.Write(p[head:])
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// isDataHeader tells whether p is the header of a frame with a body.
func isDataHeader(p []byte) bool {
	return len(p) == headerSize && p[1] == typeData && (p[8]|p[9]|p[10]|p[11]) != 0
}
