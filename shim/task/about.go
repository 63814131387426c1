// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"fmt"
	"strings"
)

// about says what failed, unless the error names the container itself: ids are long, and a client shows one line.
func about(id string, err error, format string, args ...any) error {
	text := err.Error()
	for _, kind := range []string{"container ", "pod "} {
		_, rest, found := strings.Cut(text, kind+id)
		if found && (rest == "" || strings.ContainsAny(rest[:1], ":,; ")) {
			return err
		}
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
