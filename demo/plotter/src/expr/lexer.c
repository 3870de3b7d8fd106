#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "expr.h"

void lexer_start(struct lexer *lexer, const char *text)
{
	lexer->at = text;
	lexer_next(lexer);
}

void lexer_next(struct lexer *lexer)
{
	struct token *token = &lexer->now;
	size_t length = 0;

	while (isspace((unsigned char)*lexer->at))
		lexer->at++;
	if (*lexer->at == '\0') {
		token->kind = TOKEN_END;
	} else if (isdigit((unsigned char)*lexer->at) || *lexer->at == '.') {
		char *end;

		token->number = strtod(lexer->at, &end);
		token->kind = end == lexer->at ? TOKEN_BAD : TOKEN_NUMBER;
		token->sign = *lexer->at;
		lexer->at = end == lexer->at ? end + 1 : end;
	} else if (isalpha((unsigned char)*lexer->at)) {
		while (isalnum((unsigned char)lexer->at[length]))
			length++;
		token->kind = length < sizeof(token->name) ? TOKEN_NAME : TOKEN_BAD;
		token->sign = *lexer->at;
		if (token->kind == TOKEN_NAME) {
			memcpy(token->name, lexer->at, length);
			token->name[length] = '\0';
		}
		lexer->at += length;
	} else {
		token->sign = *lexer->at;
		token->kind = strchr("+-*/^()", token->sign) ? TOKEN_SIGN : TOKEN_BAD;
		lexer->at++;
	}
}
