// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package td

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/cmd/coco/internal/measure/input"
	"github.com/coco-shim/coco/cmd/coco/internal/measure/report"
	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

// logResult is what an event log leads to.
type logResult struct {
	Platform string             `json:"platform"`
	Values   ccel.Registers     `json:"rtmrs"`
	Trace    *measurement.Trace `json:"trace,omitempty"`
}

// Lines returns the registers.
func (r *logResult) Lines() []string {
	out := make([]string, 0, len(r.Values))
	for _, v := range r.Values {
		out = append(out, v.String())
	}
	return out
}

// References names the registers as Trustee's default policy does.
func (r *logResult) References() map[string]string {
	out := map[string]string{}
	for i, v := range r.Values {
		out[fmt.Sprintf("rtmr_%d", i)] = v.String()
	}
	return out
}

// Steps returns the trace.
func (r *logResult) Steps() *measurement.Trace { return r.Trace }

func logCommand() *cobra.Command {
	var o report.Form
	cmd := &cobra.Command{
		Use:   "log FILE",
		Short: "Replay a guest's event log (/sys/firmware/acpi/tables/data/CCEL)",
		Long: "Prints RTMR0 to RTMR3 as the log leads to them, one per line. The log comes from the host: it is\n" +
			"believed only as far as these values equal those of a verified quote. --explain tells what each event means.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.Check(); err != nil {
				return fmt.Errorf("measure tdx log: %w", err)
			}
			raw, err := input.ReadLimited(args[0], 16<<20)
			if err != nil {
				return fmt.Errorf("measure tdx log: %w", err)
			}
			log, err := ccel.Parse(raw)
			if err != nil {
				return fmt.Errorf("measure tdx log %s: %w", args[0], err)
			}
			r := &logResult{Platform: "tdx"}
			if o.Explain {
				r.Trace = &measurement.Trace{}
			}
			r.Values = log.Replay(r.Trace)
			return o.Print(cmd, []report.Result{r})
		},
	}
	o.Flags(cmd)
	return cmd
}
