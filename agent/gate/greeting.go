// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/internal/line"
	"github.com/coco-shim/coco/internal/words"
)

const (
	maxGreeting  = 32               // bytes of the first line
	maxAnswer    = 1100             // bytes of a refusal; a denial has up to 1024
	greetingTime = 10 * time.Second // for the first line, and for taking the answer
)

// Greeting is how connections to a stream port begin. The host writes one line: Word, a space and a number; or the
// number alone, if Word is empty. The number is decimal, from 1 to Max, without sign or leading zero. The guest answers
// with the line "ok" and the connection is the stream's, or with a line that has the reason of its refusal.
type Greeting struct {
	Word string
	Max  uint32
}

// Admit reads the first line of c, hands its number to admit and answers. The answer comes when admit has returned, so
// that a host that has read "ok" can rely on what admit did. After an error the connection is of no more use; closing
// it is left to the caller.
func (g Greeting) Admit(c net.Conn, admit func(n uint32) error) error {
	if err := c.SetDeadline(time.Now().Add(greetingTime)); err != nil {
		return err
	}
	text, err := readLine(c)
	if err != nil && !errdefs.IsInvalidArgument(err) {
		return err // there is no line, and nobody to answer
	}
	var n uint32
	if err == nil {
		n, err = g.parse(text)
	}
	if err == nil {
		err = admit(n)
	}
	answer := contract.GreetingOK
	if err != nil {
		answer = words.Line(err.Error(), maxAnswer)
	}
	_ = c.SetDeadline(time.Now().Add(greetingTime)) // fails only when it is closed, and so does the answer
	if _, werr := io.WriteString(c, answer+"\n"); werr != nil {
		return errors.Join(err, werr)
	}
	_ = c.SetDeadline(time.Time{})
	return err
}

// readLine reads the greeting.
func readLine(r io.Reader) (string, error) {
	text, err := line.Read(r, maxGreeting)
	if errors.Is(err, line.ErrTooLong) {
		err = fmt.Errorf("greeting %q…: it is longer than %d bytes: %w", text, maxGreeting, errdefs.ErrInvalidArgument)
	}
	return text, err
}

// parse reads a greeting and names the part of it that is unknown.
func (g Greeting) parse(line string) (uint32, error) {
	refuse := func(format string, a ...any) (uint32, error) {
		return 0, fmt.Errorf("greeting %q: %s: %w", line, fmt.Sprintf(format, a...), errdefs.ErrInvalidArgument)
	}
	rest := line
	if g.Word != "" {
		var word string
		if word, rest, _ = strings.Cut(line, " "); word != g.Word {
			return refuse("unknown word %q, want %q and a number", word, g.Word)
		}
	}
	number, field, more := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || n == 0 || n > uint64(g.Max) || strconv.FormatUint(n, 10) != number {
		return refuse("%q is not a number from 1 to %d", number, g.Max)
	}
	if more {
		return refuse("unknown field %q after the number", field)
	}
	return uint32(n), nil
}
