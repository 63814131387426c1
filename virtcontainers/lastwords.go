// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package virtcontainers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/virtcontainers/hostfs"
)

const (
	// lastWordsMax is as much of a termination message as kubelet reads, the end of it.
	lastWordsMax = 4096
	// lastWordsTime bounds how long an exit is held back for the message.
	lastWordsTime = 5 * time.Second
)

// expectLastWords notes where a container's termination message is, before it is created.
func (pr *process) expectLastWords(m mountPlan, oci *agent.Spec) {
	if pr.lastWords = m.lastWords; m.lastWords == nil || oci.GetAnnotations()[contract.TerminationMessagePath] != "" {
		return
	}
	if oci.Annotations == nil {
		oci.Annotations = map[string]string{}
	}
	oci.Annotations[contract.TerminationMessagePath] = m.lastWordsAt
}

// bringLastWords writes the termination message of a container that has exited to the file that
// kubelet reads after the exit. What goes wrong is logged: the exit matters more.
func (p *Pod) bringLastWords(ctx context.Context, pr *process) {
	if pr.lastWords == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastWordsTime)
	defer cancel()
	res, err := p.agent.GetDiagnosticData(ctx, &agent.GetDiagnosticDataRequest{LogType: contract.TerminationLog, ContainerId: pr.container})
	if err == nil {
		err = writeLastWords(pr.lastWords, res.GetData())
	}
	if err != nil {
		p.log.Warn("the termination message is lost", "container", pr.container, "error", classify(err))
	}
}

// writeLastWords writes the end of a message to a file that was opened when the container was made: whatever has
// its name now is not touched.
func writeLastWords(at *os.File, words string) error {
	if words == "" {
		return nil
	}
	words = words[max(len(words)-lastWordsMax, 0):]
	f, err := hostfs.Reopen(at, os.O_WRONLY)
	if err != nil {
		return fmt.Errorf("termination message: %w", err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteString(words)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("termination message: %w", err)
	}
	return nil
}
