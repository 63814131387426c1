// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/measure"
)

// references computes what the hardware will report of the pods, with their policies in their initdata.
func (o *genOptions) references(cmd *cobra.Command, texts [][]byte, results []*result) error {
	if o.config == "" {
		return nil
	}
	docs, err := annotated(texts, results, false)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := encodeAll(&b, docs); err != nil {
		return err
	}
	values, err := measure.References(cmd, o.config, b.Bytes())
	if err != nil {
		return fmt.Errorf("--config %s: %w", o.config, err)
	}
	for _, r := range results {
		r.References = values[r.title()]
		if o.asJSON {
			continue
		}
		for _, name := range sorted(r.References) {
			cmd.PrintErrf("reference: %s: %s %s\n", r.title(), name, r.References[name])
		}
	}
	return nil
}
