// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package show writes output that several commands of coco print in the same form.
package show

import (
	"encoding/json"
	"io"
)

// JSON writes v as indented JSON and a newline.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
