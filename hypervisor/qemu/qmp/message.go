// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
)

// MaxMessage bounds one message of the VMM. The largest in practice, the answer to
// query-qmp-schema, has about a quarter of it.
const MaxMessage = 1 << 20

// Version is the VMM's version.
type Version struct {
	Major int `json:"major"`
	Minor int `json:"minor"`
	Micro int `json:"micro"`
}

// String is "major.minor.micro".
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// AtLeast tells whether v is the given version or a later one.
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
	if kinds != 1 {
		return message{}, errors.New("decode message: neither a greeting, an answer, an error nor an event")
	}
	return m, nil
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
