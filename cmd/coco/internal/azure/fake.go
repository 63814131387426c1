// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package azure

import (
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/coco-shim/coco/azure/fake"
	"github.com/coco-shim/coco/cmd/coco/internal/cli"
	"github.com/coco-shim/coco/cmd/coco/internal/show"
)

func fakeCommand() *cobra.Command {
	var o fake.Options
	var faults, chain, tcb string
	var port int
	cmd := &cobra.Command{
		Use:   "fake --state DIR",
		Short: "Serve fakes of Azure's services on this machine, to try key release without Azure",
		Long: "Serves attestation (MAA), Key Vault, Managed HSM, Entra, the metadata service with THIM, and the\n" +
			"certificate cache on 127.0.0.1, each on a port of its own, until it is interrupted. Prints their URLs as\n" +
			"JSON, and the file with the CA that clients have to trust. DIR keeps the CA and the keys that were imported.\n\n" +
			"Evidence is verified, policies are evaluated, keys are wrapped. A key in the fake is safe from nobody.\n\n" +
			"--faults names a JSON list such as [{\"service\":\"vault\",\"kind\":\"status\",\"status\":429,\"times\":2}].",
		Example: "  coco azure fake --state ~/.cache/coco/azure --port 9400",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.Dir == "" {
				return errors.New("azure fake: --state DIR is missing")
			}
			if port < 0 || port > 65535-len(fake.Services) {
				return fmt.Errorf("azure fake: --port %d: 0 to %d", port, 65535-len(fake.Services))
			}
			o.Ports = map[fake.Service]int{}
			for i, s := range fake.Services {
				if port != 0 {
					o.Ports[s] = port + i
				}
			}
			if err := thimOf(cmd, &o, chain, tcb); err != nil {
				return err
			}
			return serve(cmd, o, faults)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Dir, "state", "", "directory for CA and keys")
	f.IntVar(&port, "port", 0, "first of the ports, in the order of the output (default any)")
	f.StringVar(&faults, "faults", "", "script of faults (docs/azure.md)")
	f.StringVar(&chain, "chain", "", "certificates of the host's chip for THIM and cache (PEM, the chip's first)")
	f.StringVar(&tcb, "tcb", "", "with --chain: patch level of the certificate, 16 hexadecimal digits")
	f.BoolVar(&o.AllowInsecure, "allow-insecure", false,
		"attest sample evidence, which proves nothing; its tokens say x-ms-attestation-type: insecure")
	return cmd
}

// thimOf reads the document that THIM serves.
func thimOf(cmd *cobra.Command, o *fake.Options, chain, tcb string) (err error) {
	if (chain == "") != (tcb == "") {
		return errors.New("azure fake: --chain and --tcb go together")
	}
	if chain == "" {
		return nil
	}
	if o.Chain, err = cli.Input(cmd, chain, maxInput); err != nil {
		return err
	}
	if block, _ := pem.Decode(o.Chain); block == nil {
		return fmt.Errorf("azure fake: --chain %s is not PEM", chain)
	}
	if o.TCB, err = strconv.ParseUint(tcb, 16, 64); err != nil {
		return fmt.Errorf("azure fake: --tcb %q is not hexadecimal", tcb)
	}
	return nil
}

func serve(cmd *cobra.Command, o fake.Options, faults string) (err error) {
	f, err := fake.New(o)
	if err != nil {
		return err
	}
	if faults != "" {
		b, err := cli.Input(cmd, faults, maxInput)
		if err != nil {
			return err
		}
		list, err := fake.ParseFaults(b)
		if err != nil {
			return fmt.Errorf("--faults %s: %w", faults, err)
		}
		if err := f.SetFaults(list...); err != nil {
			return err
		}
	}
	ca := filepath.Join(o.Dir, "ca.pem")
	if err := os.WriteFile(ca, f.CA(), 0o644); err != nil {
		return err
	}
	if err := f.Start(cmd.Context()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	out := map[string]string{"ca": ca}
	for _, s := range fake.Services {
		out[string(s)] = f.URL(s)
	}
	if err := show.JSON(cmd.OutOrStdout(), out); err != nil {
		return err
	}
	<-cmd.Context().Done()
	return nil
}
