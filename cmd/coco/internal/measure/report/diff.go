// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package report

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/coco-shim/coco/measurement"
)

// maxTrace bounds a trace file: a TDX trace of a large firmware has some 10 MB.
const maxTrace = 256 << 20

func readTrace(path string) (*measurement.Trace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var doc struct {
		Trace *measurement.Trace `json:"trace"`
	}
	if err := json.NewDecoder(io.LimitReader(f, maxTrace)).Decode(&doc); err != nil {
		return nil, fmt.Errorf("%s: not the output of --json --explain for one VM: %w", path, err)
	}
	if doc.Trace == nil || len(doc.Trace.Steps) == 0 {
		return nil, fmt.Errorf("%s: has no trace; write it with --json --explain", path)
	}
	return doc.Trace, nil
}

// Diff prints how two traces differ, which were written with --json --explain. A difference is an error.
func Diff(w io.Writer, pathA, pathB string) error {
	a, err := readTrace(pathA)
	if err != nil {
		return err
	}
	b, err := readTrace(pathB)
	if err != nil {
		return err
	}
	diff := measurement.Diff(a, b)
	for _, d := range diff {
		if _, err := fmt.Fprintln(w, d); err != nil {
			return err
		}
	}
	if len(diff) > 0 {
		return fmt.Errorf("%d differences between A (%s) and B (%s)", len(diff), pathA, pathB)
	}
	return nil
}
