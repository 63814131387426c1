// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/measurement"
)

func newMeasureCmd() *cobra.Command {
	var a string
	var o configOptions
	cmd := &cobra.Command{
		Use:   "measure",
		Short: "Compute launch digests of confidential VMs before they start",
		Long: "Computes what the hardware will report for a VM. The digests go to stdout in hexadecimal and\n" +
			"nothing else does; a launch that could not succeed is refused with the reason. See docs/measurement.md.\n\n" +
			"With --config, the VMs are those of pods of a configuration, with the boot files and the command line that the\n" +
			"shim launches: one digest with --vcpus, else a table of all numbers of vCPUs that pods can get. With --pod, they are\n" +
			"the pods of a Kubernetes manifest: Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job,\n" +
			"CronJob, List, in one or several documents.\n\n" +
			"With --diff A B, two traces written with --json --explain are compared: what differs is why the digests differ.",
		Example: "  coco measure snp --firmware OVMF.fd --kernel vmlinuz --initrd initrd.img --append 'quiet' --vcpus 2 --cpu-model EPYC-v4\n" +
			"  coco measure --config /etc/coco/config.toml --vcpus 2\n" +
			"  coco measure --config /etc/coco/config.toml --pod pod.yaml\n" +
			"  coco measure --diff yesterday.json today.json",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			changed := cmd.Flags().Changed
			switch {
			case changed("config") && (changed("diff") || len(args) > 0):
				return errors.New("measure: --config goes without --diff and further arguments")
			case changed("config"):
				if err := o.run(cmd); err != nil {
					return fmt.Errorf("measure --config %s: %w", o.config, err)
				}
				return nil
			case changed("pod"):
				return errors.New("measure: --pod wants --config: the configuration of the RuntimeClass")
			case changed("vcpus") || changed("memory") || changed("profile"):
				return errors.New("measure: --vcpus, --memory and --profile want --config, or a subcommand before them")
			case !changed("diff") && len(args) == 0:
				return cmd.Help()
			case !changed("diff"):
				return fmt.Errorf("measure: unknown platform %q", args[0])
			case len(args) == 0:
				return errors.New("measure: --diff wants two files")
			}
			return diffTraces(cmd.OutOrStdout(), a, args[0])
		},
	}
	cmd.Flags().StringVar(&a, "diff", "", "compare the trace in this file with the one in the file that follows")
	o.flags(cmd)
	cmd.AddCommand(newMeasureSNPCmd(), newMeasureIGVMCmd(), newMeasureTDXCmd())
	return cmd
}

// output says in which form results are printed.
type output struct {
	json, explain bool
	references    string
}

func (o *output) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVar(&o.explain, "explain", false, "explain every step: on stderr, or in the JSON")
	f.StringVar(&o.references, "reference-values", "", "print reference values instead: rvps (Trustee) or broker (ours)")
}

func (o *output) check() error {
	switch o.references {
	case "", "rvps", "broker":
	default:
		return fmt.Errorf("--reference-values %q: known forms are rvps and broker", o.references)
	}
	if o.references != "" && (o.json || o.explain) {
		return errors.New("--reference-values goes without --json and --explain")
	}
	return nil
}

// result is what was computed for one VM.
type result interface {
	lines() []string               // for stdout: digests in hexadecimal
	references() map[string]string // digests by the names of Trustee's default policy
	trace() *measurement.Trace
}

func (o *output) print(cmd *cobra.Command, results []result) error {
	w := cmd.OutOrStdout()
	var out bytes.Buffer
	switch {
	case o.references == "rvps":
		if err := rvps(&out, results); err != nil {
			return err
		}
	case o.references == "broker":
		enc := json.NewEncoder(&out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(map[string]any{"type": "coco-reference-values", "version": 1, "values": results}); err != nil {
			return err
		}
	case o.json:
		var v any = results
		if len(results) == 1 {
			v = results[0]
		}
		enc := json.NewEncoder(&out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(v); err != nil {
			return err
		}
	default:
		for _, r := range results {
			for _, l := range r.lines() {
				fmt.Fprintln(&out, l)
			}
			if t := r.trace(); t != nil {
				explain(cmd.ErrOrStderr(), t)
			}
		}
	}
	_, err := w.Write(out.Bytes())
	return err
}

// explain prints a trace, runs of pages of one kind as one line.
func explain(w io.Writer, t *measurement.Trace) {
	for _, s := range t.Steps {
		fmt.Fprintln(w, s)
	}
}

// rvps writes the message that Trustee's reference value provider registers: the sample extractor's
// payload, a map from the names of the default policy to lists of values.
func rvps(w io.Writer, results []result) error {
	values := map[string][]string{}
	for _, r := range results {
		for name, v := range r.references() {
			values[name] = append(values[name], v)
		}
	}
	payload, err := json.Marshal(values)
	if err != nil {
		return err
	}
	return json.NewEncoder(w).Encode(struct {
		Version string `json:"version"`
		Type    string `json:"type"`
		Payload string `json:"payload"`
	}{"0.1.0", "sample", base64.StdEncoding.EncodeToString(payload)})
}

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

func diffTraces(w io.Writer, pathA, pathB string) error {
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
