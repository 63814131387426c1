// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/coco-shim/coco/policy/gen"
)

// workload is the value of --workload.
type workload struct{ of *gen.Workload }

// String is the default: none.
func (workload) String() string { return "" }

// Type is shown in the help.
func (workload) Type() string { return "file" }

// Set reads the file. The policy's own checks follow when the policy is there.
func (w workload) Set(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	*w.of = gen.Workload{}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(w.of); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: something follows the object", path)
	}
	for name, c := range w.of.Containers {
		if !c.Opens() {
			return fmt.Errorf("%s: container %q has neither resources nor calls", path, name)
		}
	}
	if len(w.of.Containers) == 0 {
		return fmt.Errorf("%s: there are no containers", path)
	}
	return nil
}
