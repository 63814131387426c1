// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package portmux carries many connections to numbered ports over one byte channel, such as a
// virtio-serial port or a socket pair. The host dials (Dialer), the guest listens (Mux).
//
// On the wire it is yamux (the specification in hashicorp/yamux), the host being its client. Every stream starts with
// the handshake of hybrid vsock. The host writes "CONNECT <port>\n". The guest answers "OK <port>\n", or
// "FULL <port>\n" when too many connections wait there, or closes the stream when the port has no listener. All later
// bytes belong to the two ends.
//
// A Conn behaves like a TCP connection: CloseWrite ends one direction and the peer reads io.EOF
// after the last byte; Close ends both, and a peer that still writes gets EPIPE. Yamux itself has
// no such reset, so port 0 is a control stream on which each side names the streams that it
// has given up.
//
// The package neither starts nor stops virtual machines. The maker of a Dialer or a Mux closes
// it; closing ends all its connections and goroutines, and closes the channel.
package portmux

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/coco-shim/coco/internal/line"
)

// Errors that callers tell apart.
var (
	// ErrRefused says that the guest runs but nobody listens on the port.
	ErrRefused = errors.New("nobody listens on that guest port")
	// ErrFull says that so many connections wait at the port that no more are taken.
	ErrFull = errors.New("too many connections wait at that guest port")
	// ErrLost says that the channel under the connections has ended.
	ErrLost = errors.New("the channel to the guest has ended")
	// ErrProtocol says that the peer sent something that is not in the protocol.
	ErrProtocol = errors.New("protocol error on the guest channel")
)

const (
	maxLine          = 32               // bytes of a handshake or control line, newline included
	controlPort      = 0                // the control stream
	handshakeTimeout = 30 * time.Second // for the first line of a stream, seen by the guest
	backlog          = 64               // connections that wait for Accept, per listener
	maxFrame         = 64<<10 - 12      // with its header it fills two writes to a virtio-serial port
	hostWindow       = 512 << 10        // unread bytes of a stream in the host, once it is read
	guestWindow      = 1 << 20          // and in the guest
	maxQueued        = 1 << 20          // bytes of frames that the peer lets wait
	maxGreetings     = 256              // streams at once that have not said their port
)

// readLine reads a line of the protocol.
func readLine(r io.Reader) (string, error) {
	text, err := line.Read(r, maxLine)
	if errors.Is(err, line.ErrTooLong) {
		err = fmt.Errorf("line longer than %d bytes: %w", maxLine, ErrProtocol)
	}
	return text, err
}

// parseLine reads "<word> <number>": decimal, no sign, no leading zeros, nothing else.
func parseLine(line, word string) (uint32, error) {
	digits, ok := bytes.CutPrefix([]byte(line), []byte(word+" "))
	if !ok {
		return 0, fmt.Errorf("want \"%s <number>\", got %q: %w", word, line, ErrProtocol)
	}
	n, err := strconv.ParseUint(string(digits), 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != string(digits) {
		return 0, fmt.Errorf("number %q after %s: %w", digits, word, ErrProtocol)
	}
	return uint32(n), nil
}

func formatLine(word string, n uint32) []byte {
	return fmt.Appendf(nil, "%s %d\n", word, n)
}
