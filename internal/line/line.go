// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package line reads the greeting line of a stream. A greeting is one short line, and the bytes behind it belong to
// another reader. So the line is read byte by byte and never past its newline.
package line

import (
	"errors"
	"io"
)

// ErrTooLong is returned for a line that does not end within the caller's limit.
var ErrTooLong = errors.New("the line is too long")

// Read returns the next line of r without its newline. With the newline the line may have limit bytes; of a longer one
// Read returns the first limit bytes and ErrTooLong.
func Read(r io.Reader, limit int) (string, error) {
	var text []byte
	var b [1]byte
	for len(text) < limit {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(text), nil
		}
		text = append(text, b[0])
	}
	return string(text), ErrTooLong
}
