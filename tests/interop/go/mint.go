// This file answers: what does the server sign for a node while an entry ends?
package main

import (
	"context"
	"errors"
	"flag"
	"time"

	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// mintAudience is what JWT-SVIDs are asked for.
const mintAudience = "mint"

// mintLine is one answer. NotAfter is empty with a refusal.
type mintLine struct {
	Kind     string  `json:"kind"`
	Asked    string  `json:"asked"`
	Code     string  `json:"code"`
	Message  string  `json:"message"`
	NotAfter *string `json:"not_after"`
}

// runMint attests by join token and asks the server for both kinds of SVID of
// one entry, again and again. Every answer is a line; refusals are no failure.
func runMint(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("mint", flag.ContinueOnError)
	readServer := serverFlags(flags)
	token := flags.String("token", "", "join token of a node that may serve the entry")
	entry := flags.String("entry", "", "ID of the entry")
	duration := flags.Duration("duration", time.Minute, "how long to go on")
	every := flags.Duration("every", 250*time.Millisecond, "pause between two rounds")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := required(flags, "token", "entry"); err != nil {
		return err
	}
	srv, err := readServer()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *duration)
	defer cancel()
	node, err := srv.attest(ctx, joinToken(*token))
	if err != nil {
		return err
	}
	conn, err := srv.as(node.svid)
	if err != nil {
		return err
	}
	defer conn.Close()

	svids := newClient(conn).svids
	ticker := time.NewTicker(*every)
	defer ticker.Stop()
	for {
		if err := mintBoth(ctx, srv, svids, *entry); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil
			}
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

func mintBoth(ctx context.Context, srv server, svids svidv1.SVIDClient, entry string) error {
	key, err := newKey()
	if err != nil {
		return err
	}
	csr, err := newCSR(key)
	if err != nil {
		return err
	}

	line := mintLine{Kind: "x509", Asked: now()}
	batch, err := svids.BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{
		Params: []*svidv1.NewX509SVIDParams{{EntryId: entry, Csr: csr}},
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return err
	case len(batch.GetResults()) != 1:
		return errors.New("the server did not answer with one result")
	}
	result := batch.GetResults()[0]
	line.Code, line.Message = codes.Code(result.GetStatus().GetCode()).String(), result.GetStatus().GetMessage()
	if line.Code == codes.OK.String() {
		svid, err := srv.accept(result.GetSvid(), key)
		if err != nil {
			return err
		}
		end := instant(svid.Certificates[0].NotAfter)
		line.NotAfter = &end
	}
	if err := emit(line); err != nil {
		return err
	}

	line = mintLine{Kind: "jwt", Asked: now()}
	token, err := svids.NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: entry, Audience: []string{mintAudience}})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	line.Code, line.Message = status.Code(err).String(), status.Convert(err).Message()
	if err == nil {
		svid, err := parseToken(token.GetSvid().GetToken())
		if err != nil {
			return err
		}
		end := instant(svid.Expiry)
		line.NotAfter = &end
	}
	return emit(line)
}
