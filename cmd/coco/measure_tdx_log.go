// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/measurement"
	"github.com/coco-shim/coco/measurement/tdx/ccel"
)

// logResult is what an event log leads to.
type logResult struct {
	Platform string             `json:"platform"`
	Values   ccel.Registers     `json:"rtmrs"`
	Trace    *measurement.Trace `json:"trace,omitempty"`
}

func (r *logResult) lines() []string {
	out := make([]string, 0, len(r.Values))
	for _, v := range r.Values {
		out = append(out, v.String())
	}
	return out
}

func (r *logResult) references() map[string]string {
	return map[string]string{"rtmr_0": r.Values[0].String(), "rtmr_1": r.Values[1].String(), "rtmr_2": r.Values[2].String(), "rtmr_3": r.Values[3].String()}
}

func (r *logResult) trace() *measurement.Trace { return r.Trace }

func newMeasureTDXLogCmd() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:   "log FILE",
		Short: "Replay a guest's event log (/sys/firmware/acpi/tables/data/CCEL)",
		Long: "Prints RTMR0 to RTMR3 as the log leads to them, one per line. The log comes from the host: it is\n" +
			"believed only as far as these values equal those of a verified quote. --explain tells what each event means.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return fmt.Errorf("measure tdx log: %w", err)
			}
			raw, err := readLimited(args[0], 16<<20)
			if err != nil {
				return fmt.Errorf("measure tdx log: %w", err)
			}
			log, err := ccel.Parse(raw)
			if err != nil {
				return fmt.Errorf("measure tdx log %s: %w", args[0], err)
			}
			r := &logResult{Platform: "tdx"}
			if o.explain {
				r.Trace = &measurement.Trace{}
			}
			r.Values = log.Replay(r.Trace)
			return o.print(cmd, []result{r})
		},
	}
	o.flags(cmd)
	return cmd
}
