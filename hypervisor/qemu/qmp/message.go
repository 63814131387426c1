// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// MaxMessage bounds one message of the VMM. The largest replies to this package's commands have some 80 KiB. A decoded
// message takes up to some twenty times its size of each shim's memory.
const MaxMessage = 256 << 10

// maxWords bounds texts of the VMM that end in errors.
const maxWords = 1 << 10

// Version is the VMM's version.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

// String is "major.minor.micro".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// AtLeast reports whether v is the given version or a later one.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// Event is something that happened in the VM.
type Event struct {
	Name string
	Data json.RawMessage // may be nil
}

// Error is the VMM's refusal of a command.
type Error struct {
	Class       string `json:"class"`
	Description string `json:"desc"`
}

// Error is the VMM's sentence.
func (e *Error) Error() string { return e.Description }

// message is anything the VMM sends: a greeting, an answer or an event.
type message struct {
	QMP *struct {
		Version struct {
			QEMU Version `json:"qemu"`
		} `json:"version"`
	} `json:"QMP"`
	Return json.RawMessage `json:"return"`
	Error  *Error          `json:"error"`
	ID     *uint64         `json:"id"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// decode reads one line. Exactly one kind of message must be there.
func decode(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("decode message: %w", err)
	}
	kinds := 0
	for _, is := range []bool{m.QMP != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if m.Error != nil {
		m.Error.Class, m.Error.Description = Words(m.Error.Class), Words(m.Error.Description)
	}
	if kinds != 1 {
		return message{}, errors.New("decode message: neither a greeting, an answer, an error nor an event")
	}
	return m, nil
}

// Words makes a text of the VMM fit for an error or a log: printable, one line, and not too long.
func Words(s string) string {
	if len(s) > maxWords {
		s = s[:maxWords] + "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '.'
	}, strings.ToValidUTF8(s, "."))
}

// readLine reads a line of at most MaxMessage bytes.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > MaxMessage {
			return nil, fmt.Errorf("message longer than %d bytes", MaxMessage)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}
