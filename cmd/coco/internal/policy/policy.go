// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package policy has the commands that make, show and judge policies of pods.
package policy

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/policy/foresee"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/gen/manifest"
)

// Command returns the group.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Make, show and judge policies: what a pod may do in its guest",
		Long: "A policy says what a pod of a confidential class may do; the guest refuses all else. See\n" +
			"docs/policy-tools.md.\n\n" +
			"FILE is a policy, an initdata document, the value of the initdata annotation, or a manifest whose pods have it;\n" +
			"- is stdin.",
	}
	cmd.AddCommand(genCommand(), showCommand(), lintCommand(), diffCommand(), explainCommand(), simulateCommand(),
		formatCommand(), signCommand(), logCommand(), foresee.Command())
	return cmd
}

// formatCommand returns the command for people who write or change a policy by hand.
func formatCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "format FILE",
		Short: "Check a policy and write it in its canonical form, the only one that guests take",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := readPolicy(cmd, args[0])
			if err != nil {
				return fmt.Errorf("policy format: %w", err)
			}
			b, err := policy.Encode(p)
			if err != nil {
				return fmt.Errorf("policy format: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", b)
			return err
		},
	}
}

// named is a policy and where it was found.
type named struct {
	name   string
	policy *policy.Policy
}

// readPolicies reads the policies of a file in any of its forms.
func readPolicies(cmd *cobra.Command, path string) ([]named, error) {
	b, err := cli.Input(cmd, path, manifest.MaxText)
	if err != nil {
		return nil, err
	}
	list, err := policies(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

// readPolicy reads the one policy of a file.
func readPolicy(cmd *cobra.Command, path string) (*policy.Policy, error) {
	list, err := readPolicies(cmd, path)
	if err != nil {
		return nil, err
	}
	if len(list) != 1 {
		return nil, fmt.Errorf("%s has %d policies: give a file with one", path, len(list))
	}
	return list[0].policy, nil
}

func policies(b []byte) ([]named, error) {
	var head struct {
		APIVersion string `json:"apiVersion"`
	}
	if json.Unmarshal(b, &head) == nil && head.APIVersion == policy.APIVersion {
		p, err := policy.Parse(b)
		return []named{{"", p}}, err
	}
	if d, err := initdata.FromText(b); err == nil {
		return fromInitdata("", d)
	}
	if d, err := initdata.FromAnnotation(string(trimmed(b))); err == nil {
		return fromInitdata("", d)
	}
	return fromManifest(b)
}

func trimmed(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b
}

func fromInitdata(name string, d *initdata.Document) ([]named, error) {
	text, ok := d.Data[policy.FileName]
	if !ok {
		return nil, fmt.Errorf("the initdata has no file %s", policy.FileName)
	}
	p, err := policy.Load([]byte(text))
	if err == nil {
		err = p.Validate()
	}
	return []named{{name, p}}, err
}

func fromManifest(b []byte) ([]named, error) {
	var set manifest.Set
	if err := set.Parse(b); err != nil {
		return nil, fmt.Errorf("is neither a policy nor initdata, and as a manifest: %w", err)
	}
	var out []named
	var errs []error
	for _, w := range set.Workloads {
		value := w.Pod.Annotations[contract.KataInitdata]
		if value == "" {
			continue
		}
		d, err := initdata.FromAnnotation(value)
		var list []named
		if err == nil {
			list, err = fromInitdata(w.String(), d)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", w, err))
		}
		out = append(out, list...)
	}
	if len(out) == 0 && len(errs) == 0 {
		return nil, fmt.Errorf("has no pod with the annotation %s: make it with coco policy gen", contract.KataInitdata)
	}
	return out, errors.Join(errs...)
}
