// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clh

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
)

// Bounds of the event stream. The VMM writes it without waiting for us, so an event may also be cut
// short or missing.
const (
	maxEvent     = 16 << 10
	maxEventLine = 4 << 10
)

// event is an event of the VMM: {"source": "vm", "event": "booted", "properties": {…}}.
type event struct {
	Source     string            `json:"source"`
	Name       string            `json:"event"`
	Properties map[string]string `json:"properties"`
}

// readEvents calls fn for each event of the stream until it ends, and returns how many pieces of it
// were none. Events are indented JSON objects, each with an empty line behind it; after something
// else, the next empty line is where reading goes on.
func readEvents(r io.Reader, fn func(event)) (garbled int) {
	in := bufio.NewReaderSize(r, maxEventLine)
	var text []byte
	bad, begun := false, true // begun: at the begin of a line
	for {
		line, err := in.ReadSlice('\n')
		blank := err == nil && len(line) == 1 && begun
		switch {
		case blank && len(text) == 0 && !bad:
		case blank:
			var e event
			if bad || json.Unmarshal(text, &e) != nil || e.Source == "" || e.Name == "" {
				garbled++
			} else {
				fn(e)
			}
			text, bad = text[:0], false
		case errors.Is(err, bufio.ErrBufferFull) || len(text)+len(line) > maxEvent:
			bad = true
		case !bad:
			text = append(text, line...)
		}
		begun = err == nil
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if bad || len(text) > 0 {
				garbled++
			}
			return garbled
		}
	}
}
