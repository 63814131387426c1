// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package foresee has the command that the shim runs before it boots a VM.
package foresee

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/internal/foresee"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
	"github.com/coco-shim/coco/policy/engine"
)

// Command returns the command.
func Command() *cobra.Command {
	return &cobra.Command{
		Use:    "foresee",
		Short:  "Answer the shim whether a policy would deny a pod, before its VM runs",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := cli.Input(cmd, "-", foresee.MaxQuestion)
			if err != nil {
				return fmt.Errorf("policy foresee: %w", err)
			}
			denial, err := answer(b)
			if err != nil {
				return fmt.Errorf("policy foresee: %w", err)
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), denial)
			return err
		},
	}
}

func answer(b []byte) (denial string, err error) {
	var q foresee.Question
	if err := json.Unmarshal(b, &q); err != nil {
		return "", fmt.Errorf("read the question: %w", err)
	}
	p, err := policy.Load([]byte(q.Policy))
	if err != nil {
		return "", err
	}
	var box agent.CreateSandboxRequest
	if err := proto.Unmarshal(q.Sandbox, &box); err != nil {
		return "", fmt.Errorf("read the sandbox's request: %w", err)
	}
	var c *agent.CreateContainerRequest
	if len(q.Container) > 0 {
		c = &agent.CreateContainerRequest{}
		if err := proto.Unmarshal(q.Container, c); err != nil {
			return "", fmt.Errorf("read the container's request: %w", err)
		}
	}
	err = engine.Foresee(p, &box, c)
	var d *compare.Denial
	if errors.As(err, &d) {
		return d.Error(), nil
	}
	return "", err
}
